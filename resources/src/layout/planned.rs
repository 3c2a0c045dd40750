//! A layout, and what keeps one from being.

use super::bar::PlacedBar;
use crate::AddressRange;

/// A plan in which nothing overlaps and everything is reachable.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout {
    /// RAM, in ascending order; at most 64 regions.
    pub ram: Vec<AddressRange>,
    /// Configuration space of bus 0.
    pub ecam: AddressRange,
    /// The window of 32-bit memory BARs.
    pub mmio32: AddressRange,
    /// The window of 64-bit memory BARs; empty if there is no room above RAM.
    pub mmio64: AddressRange,
    /// The window of I/O BARs.
    pub io: AddressRange,
    /// Where each BAR is: those of 32-bit memory, of ports and of 64-bit memory, each kind's largest first.
    pub bars: Vec<PlacedBar>,
}

impl Layout {
    /// The last address of RAM and one.
    pub fn ram_end(&self) -> u64 {
        self.ram.last().map_or(0, AddressRange::end)
    }
}

/// What could not be placed, and why.
pub(super) struct Shortage {
    pub(super) what: String,
    pub(super) why: String,
}
