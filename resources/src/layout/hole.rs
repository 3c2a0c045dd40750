//! The addresses below 4 GiB that are not for RAM.

use crate::AddressRange;

/// Addresses below 4 GiB that are not for RAM, and the window of 32-bit BARs among them.
pub(super) struct Hole {
    pub(super) addresses: AddressRange,
    pub(super) window: AddressRange,
    /// The first address of RAM.
    pub(super) ram_start: u64,
}
