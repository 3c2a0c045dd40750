//! A layout, and what keeps one from being.

use thiserror::Error;

use super::bar::{BarRequest, PlacedBar};
use crate::AddressRange;

/// The guest's physical layout. Its ranges do not overlap, and CPUs and IOMMU reach RAM and the
/// memory windows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout {
    /// The regions of RAM, in ascending order; at most 64.
    pub ram: Vec<AddressRange>,
    /// The ECAM window of bus 0.
    pub ecam: AddressRange,
    /// The window of 32-bit memory BARs.
    pub mmio32: AddressRange,
    /// The window of 64-bit memory BARs; empty if no address above RAM is reachable.
    pub mmio64: AddressRange,
    /// The window of I/O BARs.
    pub io: AddressRange,
    /// The BARs: first those of 32-bit memory, then of ports, then of 64-bit memory. The largest of
    /// each kind comes first.
    pub bars: Vec<PlacedBar>,
}

impl Layout {
    /// The first address after RAM.
    pub fn ram_end(&self) -> u64 {
        self.ram.last().map_or(0, AddressRange::end)
    }
}

/// RAM or a BAR for which there is no room, and the reason.
pub(super) struct Shortage {
    pub(super) what: String,
    pub(super) why: String,
}

/// A BAR that comes later has no room in the windows.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("no room in the guest's address space for {bar}: {why}")]
pub struct NoRoom {
    /// The BAR.
    pub bar: BarRequest,
    /// The bytes that all BARs of the request need in the same address space.
    pub needed: u64,
    pub(super) why: String,
}
