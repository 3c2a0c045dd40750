//! A BAR, and its place.

use std::fmt;

use super::units::{PAGE, size};
use crate::AddressRange;

/// The address space of a BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum BarSpace {
    /// Memory, with a 32-bit register.
    Memory32,
    /// Ports.
    Io,
    /// Memory, with a 64-bit register.
    Memory64,
}

/// A BAR that needs a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BarRequest {
    /// The function's name, for errors: its host address.
    pub function: String,
    /// The BAR's number.
    pub index: u8,
    /// Bytes, a power of two.
    pub size: u64,
    /// Its address space.
    pub space: BarSpace,
}

impl BarRequest {
    /// The BAR's size and alignment: its own, or a page so that no two functions share one (a page is the
    /// least that can be mapped into the guest).
    pub(super) fn footprint(&self) -> u64 {
        let power = self.size.checked_next_power_of_two().unwrap_or(u64::MAX);
        match self.space {
            BarSpace::Io => power,
            BarSpace::Memory32 | BarSpace::Memory64 => power.max(PAGE),
        }
    }

    /// 64-bit BARs come last: they may have what the others leave of the 32-bit window.
    pub(super) fn turn(&self) -> impl Ord + use<> {
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

/// A BAR and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedBar {
    /// What was asked for.
    pub request: BarRequest,
    /// Where it is.
    pub address: u64,
}

impl PlacedBar {
    /// The addresses that it decodes.
    pub fn range(&self) -> AddressRange {
        AddressRange::new(self.address, self.request.size)
    }
}
