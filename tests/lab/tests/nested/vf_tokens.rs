//! A physical function on vfio-pci itself, and its virtual functions, which need its VF token.

use guest::{Function, Report};
use lab::protocol::Request;
use lab::{Device, Error, Guest, L1, Outcome, sha256};

use crate::Test;
use crate::devices::ONE_DISK_EACH;
use crate::support::{VFIO, assert_parts, assert_refused, boot, hashes};
use crate::tools::{SUCCESS, output};

pub const TESTS: &[Test] =
    &[("functions: a virtual one is opened with the VF token of its NVMe", tokens)];

const TOKEN: &str = "bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3";
const OTHER: &str = "bd8d9d2b-5a5f-4f5a-a211-f591514ba1f4";
const PARAMETER: &str = "/sys/module/vfio_pci/parameters/enable_sriov";
const HASHED: usize = 1 << 20;

fn write(l1: &mut L1, path: &str, contents: &str) -> Result<(), Error> {
    l1.perform(&Request::Write { path: path.to_owned(), contents: contents.to_owned() })
}

/// QEMU 7.2 forgets the virtual functions when the physical function is reset, and leaves VF Enable
/// set, so that Linux does not make them again. So the physical function is not reset, and a second
/// virtual function without a driver keeps their bus from being reset.
fn tokens(l1: &mut L1) -> Result<(), Error> {
    let physical = l1.machine().address_of(Device::NvmeWithVfs);
    let count = format!("/sys/bus/pci/devices/{physical}/sriov_numvfs");
    write(l1, &count, "0")?;
    l1.bind(&physical, VFIO)?;
    write(l1, PARAMETER, "Y")?;
    let resets = format!("/sys/bus/pci/devices/{physical}/reset_method");
    write(l1, &resets, "\n")?;
    write(l1, &count, "2")?;
    let virtual_ = l1.machine().vf(1);
    l1.bind(&virtual_, VFIO)?;
    let other = l1.machine().vf(2);
    l1.bind(&other, None)?;
    refusals(l1, &physical, &virtual_)?;
    both(l1, &physical, &virtual_)?;
    write(l1, &count, "0")?;
    write(l1, PARAMETER, "N")?;
    write(l1, &resets, "default")?;
    l1.bind(&physical, Some("nvme"))
}

fn with(device: &str, token: &str) -> String {
    format!("{device},vf-token={token}")
}

fn refusals(l1: &mut L1, physical: &str, virtual_: &str) -> Result<(), Error> {
    let listed = output(l1, "devices", SUCCESS)?;
    assert_parts(&listed, &[&format!("yes, with the VF token of {physical}: vf-token=UUID")]);
    let remedy = format!(
        "open it with: --vfio {physical},vf-token=UUID, then with --vfio {virtual_},vf-token=UUID"
    );
    let refused = Guest::new("look").device(virtual_).boot(l1)?;
    let needs = format!("{virtual_}: it needs a VF token (EACCES)");
    assert_refused(&refused, &[&needs, physical, &remedy]);
    let refused = Guest::new("look").device(&with(virtual_, OTHER)).boot(l1)?;
    let wrong = format!("{virtual_}: the VF token is not that of its physical function {physical}");
    assert_refused(&refused, &[&wrong, &remedy]);
    assert!(!refused.stderr.contains(OTHER), "the token is printed");
    let plain = l1.machine().address_of(Device::Nvme);
    l1.bind(&plain, VFIO)?;
    let refused = Guest::new("look").device(&with(&plain, TOKEN)).boot(l1)?;
    assert_refused(&refused, &[&format!("{plain}: it takes no VF token (EINVAL)")]);
    Ok(())
}

/// The virtual function is named first. It has no queues here, so the guest only sees it; another
/// test reads from virtual functions.
fn both(l1: &mut L1, physical: &str, virtual_: &str) -> Result<(), Error> {
    let guest = Guest::new("look,disks:1")
        .command_line(ONE_DISK_EACH)
        .device(&with(virtual_, TOKEN))
        .device_without_reset(&with(physical, TOKEN));
    let outcome = boot(l1, &guest)?;
    assert_eq!(nvmes(&outcome), ["0000:00:01.0", "0000:00:02.0"], "{}", outcome.details());
    // The token stays when its physical function is closed.
    let outcome = boot(l1, &Guest::new("look").device(&with(virtual_, TOKEN)))?;
    assert_eq!(nvmes(&outcome), ["0000:00:01.0"], "{}", outcome.details());
    // While no virtual function is in use, the physical function takes any token.
    let expected = sha256(&l1.image(9)?[..HASHED]);
    let guest = Guest::new("hash:1M").device_without_reset(&with(physical, OTHER));
    let outcome = boot(l1, &guest.command_line(ONE_DISK_EACH))?;
    assert_eq!(hashes(&outcome), [expected], "{}", outcome.details());
    Ok(())
}

/// The addresses of the guest's NVMes.
fn nvmes(outcome: &Outcome) -> Vec<String> {
    let functions = outcome.reports.iter().find_map(|report| match report {
        Report::Pci { functions } => Some(functions.clone()),
        _ => None,
    });
    let is_nvme = |function: &Function| function.class == "010802";
    let nvmes = functions.into_iter().flatten().filter(is_nvme);
    nvmes.map(|function| function.address).collect()
}
