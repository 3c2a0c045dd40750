//! Placement of BARs: the largest first, each at a multiple of its size, so that gaps are small.

use super::arch::PAGE;
use super::bar::{BarRequest, BarSpace, PlacedBar};
use super::planned::{Layout, NoRoom, Shortage};
use super::request::{LayoutRequest, Spare};
use super::units::size;
use crate::AddressRange;
use crate::range::subtract;

/// What of a window is free.
struct Free(Vec<AddressRange>);

impl Free {
    fn all_of(window: AddressRange) -> Self {
        Self(Vec::from([window]))
    }

    /// Takes the lowest free `bytes` at a multiple of `align`, a power of two.
    fn take(&mut self, bytes: u64, align: u64) -> Option<u64> {
        let places = self.0.iter().map(|free| free.aligned(align));
        let place = places.into_iter().find(|place| place.size >= bytes)?.start;
        self.remove(AddressRange::new(place, bytes));
        Some(place)
    }

    fn remove(&mut self, range: AddressRange) {
        self.0 = subtract(std::mem::take(&mut self.0), &[range]);
    }

    /// States how much of the window `name` is free, for an error.
    fn left(&self, name: &str) -> String {
        match self.0.iter().map(|free| free.size).max().unwrap_or(0) {
            0 => format!("the {name} window is full"),
            bytes => format!("the largest free piece of the {name} window has {}", size(bytes)),
        }
    }
}

/// What of each window is free.
struct Windows {
    memory32: Free,
    memory64: Free,
    io: Free,
}

impl Windows {
    fn of(plan: &Layout) -> Self {
        let [memory32, memory64, io] = [plan.mmio32, plan.mmio64, plan.io].map(Free::all_of);
        Self { memory32, memory64, io }
    }

    fn take(&mut self, space: BarSpace, bytes: u64, align: u64) -> Option<u64> {
        match space {
            BarSpace::Io => self.io.take(bytes, align),
            BarSpace::Memory32 => self.memory32.take(bytes, align),
            // A 64-bit BAR can hold a 32-bit address.
            BarSpace::Memory64 => {
                let wide = self.memory64.take(bytes, align);
                wide.or_else(|| self.memory32.take(bytes, align))
            }
        }
    }

    fn place(&mut self, request: &BarRequest) -> Option<u64> {
        let bytes = request.footprint();
        self.take(request.space, bytes, bytes)
    }

    /// Keeps `spare` free; `None` if there is no room for it.
    fn keep(&mut self, spare: &Spare) -> Option<u64> {
        let bytes = spare.size.checked_next_multiple_of(PAGE)?;
        let Some(order) = bytes.checked_ilog2() else { return Some(0) };
        self.take(spare.space, bytes, 1 << order)
    }

    /// Removes what a placed BAR occupies.
    fn remove(&mut self, placed: &PlacedBar) {
        let range = AddressRange::new(placed.address, placed.request.footprint());
        match placed.request.space {
            BarSpace::Io => self.io.remove(range),
            BarSpace::Memory32 | BarSpace::Memory64 => {
                self.memory32.remove(range);
                self.memory64.remove(range);
            }
        }
    }

    /// States how much is free for a BAR, for an error.
    fn left(&self, space: BarSpace) -> String {
        match space {
            BarSpace::Io => self.io.left("port"),
            BarSpace::Memory32 => self.memory32.left("32-bit"),
            BarSpace::Memory64 => {
                format!("{}, {}", self.memory64.left("64-bit"), self.memory32.left("32-bit"))
            }
        }
    }
}

/// Whether all 64-bit BARs, and the room for later ones, have a place in `window`.
pub(super) fn fit64(request: &LayoutRequest<'_>, window: AddressRange) -> bool {
    let mut free = Windows::of(&Layout { mmio64: window, ..Layout::default() });
    let bars = in_order(request.bars);
    let mut wide = bars.iter().filter(|bar| bar.space == BarSpace::Memory64);
    let mut spare = request.spare.iter().filter(|spare| spare.space == BarSpace::Memory64);
    wide.all(|bar| free.place(bar).is_some()) && spare.all(|spare| free.keep(spare).is_some())
}

fn in_order(bars: &[BarRequest]) -> Vec<BarRequest> {
    let mut bars = bars.to_vec();
    bars.sort_by_key(BarRequest::order);
    bars
}

/// Adds every BAR to `plan`, within the plan's windows, of which `spare` stays free.
pub(super) fn place(
    bars: &[BarRequest],
    spare: &[Spare],
    plan: &mut Layout,
) -> Result<(), Shortage> {
    let mut free = Windows::of(plan);
    for request in in_order(bars) {
        let Some(address) = free.place(&request) else {
            return Err(Shortage { what: request.to_string(), why: free.left(request.space) });
        };
        plan.bars.push(PlacedBar { request, address });
    }
    for spare in spare {
        if free.keep(spare).is_none() {
            return Err(Shortage { what: spare.to_string(), why: free.left(spare.space) });
        }
    }
    Ok(())
}

/// Whether `bars` have room beside those that are `placed`.
pub(super) fn fit(bars: &[BarRequest], placed: &[PlacedBar], plan: &Layout) -> Result<(), NoRoom> {
    let mut free = Windows::of(plan);
    placed.iter().for_each(|bar| free.remove(bar));
    for bar in in_order(bars) {
        if free.place(&bar).is_none() {
            let same = bars.iter().filter(|other| other.space == bar.space);
            let needed = same.map(BarRequest::footprint).fold(0, u64::saturating_add);
            return Err(NoRoom { why: free.left(bar.space), bar, needed });
        }
    }
    Ok(())
}
