//! The QEMUs with which `vmm` is compared.

use std::path::Path;

use lab::protocol::Program;
use lab::{Error, L1, Lab, Tool};
use serde::Serialize;

use super::HOST;

/// The QEMU of the host, which also emulates L1.
const HOSTS: &str = "/usr/bin/qemu-system-x86_64";

/// A PC with the fewest devices that QEMU emulates for it.
const Q35: (&str, &str) = ("q35", "-machine q35,sata=off");

/// QEMU's machine that starts fastest: without chipset, with PCIe, and with the firmware that does
/// only what a kernel from the command line needs.
const MICROVM: (&str, &str) = (
    "microvm",
    "-machine microvm,pcie=on,acpi=on,pit=off,pic=off,rtc=off -bios qboot.rom -no-user-config",
);

/// The QEMU of arm64, in the root that L1 mounts.
const ARM64: &str = "/usr/bin/qemu-system-aarch64";

/// A QEMU with one of its machines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Qemu {
    /// The name for tables, with the version.
    pub name: String,
    /// The command line without what describes the guest.
    pub command: String,
    /// Linux's name of its console.
    pub console: &'static str,
}

impl Qemu {
    /// The host's QEMU.
    pub fn hosts() -> Result<Self, Error> {
        Self::new(HOSTS, "", Q35)
    }

    /// The newest QEMU that Debian has for the host's release, as a PC and as a microvm.
    pub fn newest(lab: &Lab) -> Result<[Self; 2], Error> {
        let root = lab.newest_qemu()?.display().to_string();
        let program = format!("{root}{HOSTS}");
        let firmware = format!(" -L {root}/usr/share/qemu -L {root}/usr/share/seabios");
        Ok([Self::new(&program, &firmware, Q35)?, Self::new(&program, &firmware, MICROVM)?])
    }

    fn new(program: &str, firmware: &str, (name, machine): (&str, &str)) -> Result<Self, Error> {
        Ok(Self {
            name: format!("QEMU {} {name}", version(Path::new(program))?),
            command: format!("{program}{firmware} {machine} -accel kvm -cpu host"),
            console: "ttyS0",
        })
    }

    /// The QEMU of Debian 13 for arm64, with its machine that has no emulated devices of a board.
    pub fn of_arm64(l1: &mut L1) -> Result<Self, Error> {
        let arguments = [ARM64, "--version"].map(str::to_owned).to_vec();
        let run = l1.run(Program { arguments, root: Some(HOST.into()), ..Program::default() })?;
        let version = version_in(&run.stdout).ok_or_else(|| Error::Command {
            command: format!("{ARM64} --version"),
            why: run.stderr,
        })?;
        Ok(Self {
            name: format!("QEMU {version} virt"),
            command: format!("{ARM64} -machine virt,gic-version=3 -accel kvm -cpu host"),
            console: "ttyAMA0",
        })
    }
}

/// The version of a QEMU, such as `7.2`.
fn version(program: &Path) -> Result<String, Error> {
    let output = Tool::new(program).args(["--version"]).output()?;
    let text = String::from_utf8_lossy(&output);
    version_in(&text).ok_or_else(|| Error::Command {
        command: format!("{} --version", program.display()),
        why: text.into_owned(),
    })
}

fn version_in(text: &str) -> Option<String> {
    let version = text.split_whitespace().nth(3)?;
    let mut numbers = version.split('.');
    Some(format!("{}.{}", numbers.next()?, numbers.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_has_two_numbers() {
        let text = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright (c) 2003\n";
        assert_eq!(version_in(text).unwrap(), "10.0");
        assert_eq!(version_in("QEMU emulator"), None);
    }
}
