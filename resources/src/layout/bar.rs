//! A BAR, and its place.

use std::fmt;

use super::arch::PAGE;
use super::units::size;
use crate::AddressRange;

/// The address space of a BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum BarSpace {
    /// Memory, with a 32-bit BAR.
    Memory32,
    /// Ports.
    Io,
    /// Memory, with a 64-bit BAR.
    Memory64,
}

/// A BAR that needs an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BarRequest {
    /// The function's address in the host, for errors.
    pub function: String,
    /// The BAR's number, 0 to 5.
    pub index: u8,
    /// The size in bytes, a power of two.
    pub size: u64,
    /// The address space.
    pub space: BarSpace,
}

impl BarRequest {
    /// The size and alignment of the BAR's place. A memory BAR has whole pages to itself, because a
    /// memory slot consists of pages of the host.
    pub(super) fn footprint(&self) -> u64 {
        let power = self.size.checked_next_power_of_two().unwrap_or(u64::MAX);
        match self.space {
            BarSpace::Io => power,
            BarSpace::Memory32 | BarSpace::Memory64 => power.max(PAGE),
        }
    }

    /// 64-bit BARs come last: they may have what the others leave of the 32-bit window.
    pub(super) fn order(&self) -> impl Ord + use<> {
        (self.space, std::cmp::Reverse(self.footprint()))
    }
}

impl fmt::Display for BarSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory32 => "32-bit memory",
            Self::Memory64 => "64-bit memory",
            Self::Io => "ports",
        })
    }
}

impl fmt::Display for BarRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bytes, space) = (size(self.size), self.space);
        write!(f, "BAR {} of {} ({bytes} of {space})", self.index, self.function)
    }
}

/// A BAR and its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedBar {
    /// The request that this BAR answers.
    pub request: BarRequest,
    /// The BAR's first address or port.
    pub address: u64,
}

impl PlacedBar {
    /// The addresses that the BAR decodes.
    pub fn range(&self) -> AddressRange {
        AddressRange::new(self.address, self.request.size)
    }
}
