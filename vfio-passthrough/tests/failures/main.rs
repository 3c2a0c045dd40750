//! Each kernel call of each operation fails, with each errno that it can have. Nothing panics, each
//! leak is logged, errors name the operation, the device and the errno, and a repeated operation
//! works.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that fails panics"
)]

mod ends;
mod guest;
mod lines;
mod memory;
mod setup;

use vfio_passthrough::model::{Call, Fault};

/// The errnos of the kernel, and short reads and writes.
const FAULTS: [Fault; 10] = [
    Fault::Errno(libc::ENOMEM),
    Fault::Errno(libc::ENOSPC),
    Fault::Errno(libc::EBUSY),
    Fault::Errno(libc::EINVAL),
    Fault::Errno(libc::EFAULT),
    Fault::Errno(libc::EIO),
    Fault::Errno(libc::ENODEV),
    Fault::Errno(libc::EPERM),
    Fault::Short(0),
    Fault::Short(1),
];

/// An error after this call failed contains one of these texts, which name the operation.
fn operation(call: Call) -> &'static [&'static str] {
    match call {
        Call::MapDma => &["cannot map "],
        Call::UnmapDma => &["cannot unmap "],
        Call::IommuInfo => &["VFIO_IOMMU_GET_INFO"],
        Call::RegionInfo => &["cannot describe region "],
        Call::IrqInfo => &["VFIO_DEVICE_GET_IRQ_INFO ("],
        Call::Read => &["cannot read region "],
        Call::Write => &["cannot write region "],
        Call::Mmap => &[" is trapped: mmap: "],
        Call::SetIrqs => &["VFIO_DEVICE_SET_IRQS ("],
        Call::Reset => &["VFIO_DEVICE_RESET: "],
        Call::BusMembers => &["VFIO_DEVICE_GET_PCI_HOT_RESET_INFO", "its bus has none"],
        Call::ResetBus => &["VFIO_DEVICE_PCI_HOT_RESET: "],
        Call::PlaceSlot => &["cannot place "],
        Call::RemoveSlot => &["cannot remove the memory slot of "],
        Call::Route => &["cannot route "],
        Call::Eventfd => &["cannot make an eventfd for ", "cannot route "],
        Call::AllocateVectors => &["no room for "],
    }
}

/// The text that names the errno of this failure.
fn reason(call: Call, fault: Fault) -> String {
    match fault {
        // This errno means that no bus can be reset.
        Fault::Errno(libc::ENODEV) if call == Call::BusMembers => "(ENODEV)".to_owned(),
        Fault::Errno(errno) => format!("(os error {errno})"),
        Fault::Short(_) if call == Call::Read => "unexpected end of file".to_owned(),
        Fault::Short(_) => "write zero".to_owned(),
    }
}

/// The line names the operation, the device and the errno.
fn names(line: &str, whom: &str, call: Call, fault: Fault) -> bool {
    let operation = operation(call).iter().any(|part| line.contains(part));
    operation && line.contains(whom) && line.contains(&reason(call, fault))
}

/// Returns `what` as an error of this point of the sweep, unless the check holds.
fn check(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

/// Runs `trial` with each call failing in turn, with each fault, and returns the number of points.
/// `trial` gets the number of the failing call and the fault. It returns the failed call, or an
/// error if a check fails.
fn sweep(
    name: &str,
    calls: u64,
    trial: impl Fn(u64, Fault) -> Result<Option<Call>, String>,
) -> u64 {
    let (mut points, mut wrong) = (0, Vec::new());
    for (call, fault) in (0..calls).flat_map(|call| FAULTS.map(|fault| (call, fault))) {
        match trial(call, fault) {
            Ok(failed) => points += u64::from(failed.is_some()),
            Err(what) => wrong.push(format!("call {call} with {fault:?}: {what}")),
        }
    }
    println!("{name}: {calls} calls, {points} points");
    let first = wrong.iter().take(10).map(String::as_str).collect::<Vec<_>>().join("\n");
    assert!(wrong.is_empty(), "{name}: {} points are wrong:\n{first}", wrong.len());
    assert!(points >= calls * 8, "{name}: each call fails with each errno");
    points
}
