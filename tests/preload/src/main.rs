//! `on-model` runs a program as on a machine with VFIO. See README.md.

mod functions;
#[expect(dead_code, reason = "the library reads what this program writes")]
mod machine;
mod tree;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};

use clap::Parser;
use vfio_model::Kernel;

use machine::{Device, Machine, VARIABLE};

/// The library's file.
const LIBRARY: &str = "libvfio_preload.so";

/// A card with SR-IOV and a virtual function, and an NVMe.
const DEVICES: [&str; 3] = [
    "0000:01:00.0,group=1,kind=card",
    "0000:01:10.0,group=2,kind=card,vf-of=0000:01:00.0",
    "0000:02:00.0,group=3,kind=nvme",
];

/// Runs a program as on a machine whose PCI devices are bound to vfio-pci. The model of VFIO
/// answers in the program's process: it needs no hardware, no root and no IOMMU.
#[derive(Parser)]
#[command(name = "on-model")]
struct Arguments {
    /// The kernel whose rules VFIO follows: 5.4, 6.1, 6.12 or 7.3.
    #[arg(long, value_parser = machine::kernel, default_value = "7.3")]
    kernel: Kernel,
    /// Map ordinary memory where the program maps huge pages, which this machine may lack.
    #[arg(long)]
    huge_pages: bool,
    /// A device, such as 0000:01:00.0,group=1,kind=nvme; kinds are card, nic and nvme. A virtual
    /// function has `vf-of=` and the address of its physical function.
    #[arg(long = "device", value_name = "DEVICE", default_values = DEVICES)]
    devices: Vec<Device>,
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    program: Vec<OsString>,
}

fn main() -> ExitCode {
    let Arguments { kernel, huge_pages, devices, program } = Arguments::parse();
    match run(&Machine { kernel, huge_pages, devices }, &program) {
        Ok(status) => ExitCode::from(code(status)),
        Err(error) => {
            eprintln!("on-model: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(machine: &Machine, program: &[OsString]) -> io::Result<ExitStatus> {
    let folder = tempfile::Builder::new().prefix("on-model-").tempdir()?;
    fs::write(folder.path().join(machine::FILE), machine.to_string())?;
    tree::write(machine, folder.path())?;
    let [program, arguments @ ..] = program else {
        return Err(io::Error::other("no program is given"));
    };
    let mut command = Command::new(program);
    command.args(arguments).env(VARIABLE, folder.path()).env("LD_PRELOAD", library()?).status()
}

/// The library, which cargo builds beside this program.
fn library() -> io::Result<PathBuf> {
    let program = env::current_exe()?;
    let folder = program.parent().unwrap_or(Path::new("."));
    // Where cargo runs tests, it puts the library below `deps` only.
    let places = [folder.join("deps").join(LIBRARY), folder.join(LIBRARY)];
    let missing = || io::Error::other(format!("{LIBRARY} is not in {}", folder.display()));
    places.into_iter().find(|place| place.exists()).ok_or_else(missing)
}

/// The status as a shell reports it: a signal is 128 and its number.
fn code(status: ExitStatus) -> u8 {
    let signal = || status.signal().map_or(1, |signal| signal.saturating_add(128));
    u8::try_from(status.code().unwrap_or_else(signal)).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_of_the_program_are_not_ours() {
        let arguments = Arguments::parse_from(["on-model", "--kernel", "6.1", "ls", "--kernel"]);
        assert_eq!(arguments.kernel, Kernel::Linux6_1);
        assert_eq!(arguments.program, ["ls", "--kernel"]);
        assert_eq!(arguments.devices.len(), 3);
    }
}
