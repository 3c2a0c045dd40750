//! Where BARs go: largest first, each at a multiple of its size, so that little is lost between them.

use std::fmt;

use super::table::size;
use super::{Layout, PAGE, Shortage};
use crate::AddressRange;
use crate::range::subtract;

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
    fn footprint(&self) -> u64 {
        let power = self.size.checked_next_power_of_two().unwrap_or(u64::MAX);
        match self.space {
            BarSpace::Io => power,
            BarSpace::Memory32 | BarSpace::Memory64 => power.max(PAGE),
        }
    }

    /// 64-bit BARs come last: they may have what the others leave of the 32-bit window.
    fn turn(&self) -> impl Ord + use<> {
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

/// What of a window is free.
struct Free(Vec<AddressRange>);

impl Free {
    fn all_of(window: AddressRange) -> Self {
        Self(Vec::from([window]))
    }

    /// The lowest place for `bytes`, a power of two, at a multiple of it.
    fn take(&mut self, bytes: u64) -> Option<u64> {
        let places = self.0.iter().map(|free| free.aligned(bytes));
        let place = places.into_iter().find(|place| place.size >= bytes)?.start;
        self.0 = subtract(std::mem::take(&mut self.0), &[AddressRange::new(place, bytes)]);
        Some(place)
    }

    fn largest(&self) -> u64 {
        self.0.iter().map(|free| free.size).max().unwrap_or(0)
    }
}

/// Whether all 64-bit BARs have a place in `window`.
pub(super) fn fit64(bars: &[BarRequest], window: AddressRange) -> bool {
    let mut free = Free::all_of(window);
    let mut wide = in_turn(bars).into_iter().filter(|bar| bar.space == BarSpace::Memory64);
    wide.all(|bar| free.take(bar.footprint()).is_some())
}

fn in_turn(bars: &[BarRequest]) -> Vec<BarRequest> {
    let mut bars = bars.to_vec();
    bars.sort_by_key(BarRequest::turn);
    bars
}

/// Adds every BAR to `plan`, in its windows.
pub(super) fn place(bars: &[BarRequest], plan: &mut Layout) -> Result<(), Shortage> {
    let [mut memory32, mut memory64, mut io] =
        [plan.mmio32, plan.mmio64, plan.io].map(Free::all_of);
    for request in in_turn(bars) {
        let bytes = request.footprint();
        let place = match request.space {
            BarSpace::Io => io.take(bytes),
            BarSpace::Memory32 => memory32.take(bytes),
            // A 64-bit BAR may hold a 32-bit address, not the other way round.
            BarSpace::Memory64 => memory64.take(bytes).or_else(|| memory32.take(bytes)),
        };
        let Some(address) = place else {
            let left = |name: &str, free: &Free| match free.largest() {
                0 => format!("the {name} window has nothing left"),
                bytes => format!("the {name} window has at most {} left in one piece", size(bytes)),
            };
            let why = match request.space {
                BarSpace::Io => left("port", &io),
                BarSpace::Memory32 => left("32-bit", &memory32),
                BarSpace::Memory64 => {
                    format!("{}, {}", left("64-bit", &memory64), left("32-bit", &memory32))
                }
            };
            let what = request.to_string();
            return Err(Shortage { what, why });
        };
        plan.bars.push(PlacedBar { request, address });
    }
    Ok(())
}
