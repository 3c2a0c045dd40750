//! Every failure: each kernel call of each operation fails, with each errno that it may have. Nothing panics,
//! nothing leaks but what says so, errors name operation, device and errno, and what is tried again works.
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

/// What the kernel may answer, and reads and writes that fall short.
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

/// What names the operation when this call failed: one of these.
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

/// What names the errno of this failure.
fn reason(call: Call, fault: Fault) -> String {
    match fault {
        // It has a meaning there: no bus that could be reset.
        Fault::Errno(libc::ENODEV) if call == Call::BusMembers => "(ENODEV)".to_owned(),
        Fault::Errno(errno) => format!("(os error {errno})"),
        Fault::Short(_) if call == Call::Read => "unexpected end of file".to_owned(),
        Fault::Short(_) => "write zero".to_owned(),
    }
}

/// A line that names all that there is to name.
fn names(line: &str, whom: &str, call: Call, fault: Fault) -> bool {
    let operation = operation(call).iter().any(|part| line.contains(part));
    operation && line.contains(whom) && line.contains(&reason(call, fault))
}

/// What is not as it should be at a point of the sweep.
fn check(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

/// Fails each of so many calls in turn, in each way; says how many points that were. `trial` is told the call
/// and the way, and tells which call failed, or what is wrong then.
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
