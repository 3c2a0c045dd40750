//! The limit on open files.

use super::rlimits::Kind;
use super::shortage::{Shortage, within};

/// The files that the VMM opens besides one for each vCPU and those of devices: 28 with a control
/// socket, a client of it, counters, an initrd and the container of devices.
const FILES: u64 = 32;
/// The files of a device, besides one for each vector.
const FILES_OF_DEVICE: u64 = 8;

/// The number of files that a VMM opens, at most. `vectors` has the number of each device.
pub(crate) fn files_needed(cpus: u8, vectors: impl IntoIterator<Item = u64>) -> u64 {
    let each = vectors.into_iter().map(|vectors| vectors.saturating_add(FILES_OF_DEVICE));
    each.fold(FILES.saturating_add(cpus.into()), u64::saturating_add)
}

/// Checks that `needed` files can be open.
pub(crate) fn files(limits: &str, needed: u64) -> Result<(), Shortage> {
    within(Kind::OpenFiles, limits, needed, |hard| {
        format!("the VMM opens up to {needed} files, and the process's limit is {hard}")
    })
}
