//! Placement of BARs: the largest first, each at a multiple of its size, so that gaps are small.

use super::bar::{BarRequest, BarSpace, PlacedBar};
use super::planned::{Layout, Shortage};
use super::units::size;
use crate::AddressRange;
use crate::range::subtract;

/// What of a window is free.
struct Free(Vec<AddressRange>);

impl Free {
    fn all_of(window: AddressRange) -> Self {
        Self(Vec::from([window]))
    }

    /// Takes the lowest free `bytes`, a power of two, at a multiple of `bytes`.
    fn take(&mut self, bytes: u64) -> Option<u64> {
        let places = self.0.iter().map(|free| free.aligned(bytes));
        let place = places.into_iter().find(|place| place.size >= bytes)?.start;
        self.0 = subtract(std::mem::take(&mut self.0), &[AddressRange::new(place, bytes)]);
        Some(place)
    }

    /// States how much of the window `name` is free, for an error.
    fn left(&self, name: &str) -> String {
        match self.0.iter().map(|free| free.size).max().unwrap_or(0) {
            0 => format!("the {name} window is full"),
            bytes => format!("the largest free piece of the {name} window has {}", size(bytes)),
        }
    }
}

/// Whether all 64-bit BARs have a place in `window`.
pub(super) fn fit64(bars: &[BarRequest], window: AddressRange) -> bool {
    let mut free = Free::all_of(window);
    let mut wide = in_order(bars).into_iter().filter(|bar| bar.space == BarSpace::Memory64);
    wide.all(|bar| free.take(bar.footprint()).is_some())
}

fn in_order(bars: &[BarRequest]) -> Vec<BarRequest> {
    let mut bars = bars.to_vec();
    bars.sort_by_key(BarRequest::order);
    bars
}

/// Adds every BAR to `plan`, within the plan's windows.
pub(super) fn place(bars: &[BarRequest], plan: &mut Layout) -> Result<(), Shortage> {
    let [mut memory32, mut memory64, mut io] =
        [plan.mmio32, plan.mmio64, plan.io].map(Free::all_of);
    for request in in_order(bars) {
        let bytes = request.footprint();
        let place = match request.space {
            BarSpace::Io => io.take(bytes),
            BarSpace::Memory32 => memory32.take(bytes),
            // A 64-bit BAR can hold a 32-bit address.
            BarSpace::Memory64 => memory64.take(bytes).or_else(|| memory32.take(bytes)),
        };
        let Some(address) = place else {
            let why = match request.space {
                BarSpace::Io => io.left("port"),
                BarSpace::Memory32 => memory32.left("32-bit"),
                BarSpace::Memory64 => {
                    format!("{}, {}", memory64.left("64-bit"), memory32.left("32-bit"))
                }
            };
            let what = request.to_string();
            return Err(Shortage { what, why });
        };
        plan.bars.push(PlacedBar { request, address });
    }
    Ok(())
}
