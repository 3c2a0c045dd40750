//! Programs of the host that run in L1: L1 has the host's root.

use lab::protocol::{Program, Request};
use lab::{Error, L1};

/// Where L1 has the host's root.
pub const HOST: &str = "/host";

/// Gives the host's root to L1, unless an earlier test did.
pub fn share(l1: &mut L1) -> Result<(), Error> {
    match l1.read(&format!("{HOST}/bin")) {
        Ok(_) => Ok(()),
        Err(_) => l1.perform(&Request::Share { at: HOST.into() }),
    }
}

/// The host's QEMU as VMM, with the kernel and the initrd at these paths in L1. `size` has its options
/// for memory and vCPUs.
pub fn qemu(
    l1: &mut L1,
    [kernel, initrd]: [&str; 2],
    devices: &[&str],
    size: &str,
    command_line: String,
) -> Result<Program, Error> {
    share(l1)?;
    for (from, to) in [(kernel, "kernel"), (initrd, "initrd")] {
        l1.perform(&Request::Copy { from: from.into(), to: format!("{HOST}/tmp/{to}") })?;
    }
    let fixed = format!(
        "/usr/bin/qemu-system-x86_64 -machine q35,sata=off -accel kvm -cpu host {size} -nodefaults \
         -nographic -no-reboot -serial stdio -kernel /tmp/kernel -initrd /tmp/initrd"
    );
    let devices = devices.iter().flat_map(|own| ["-device".into(), format!("vfio-pci,host={own}")]);
    let words = fixed.split_whitespace().map(str::to_owned).chain(devices);
    let arguments = words.chain(["-append".to_owned(), command_line]).collect();
    Ok(Program { arguments, root: Some(HOST.into()), ..Program::default() })
}
