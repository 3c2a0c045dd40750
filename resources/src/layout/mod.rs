//! The guest's physical layout, planned before boot.
//!
//! An assigned device uses guest physical addresses as IOVAs. So RAM must lie where the IOMMU
//! translates, and BARs should, so that devices can reach each other. RAM has several regions if
//! reserved addresses lie between them. Where RAM and windows may be depends on the architecture:
//! see `arch`.

mod arch;
mod bar;
mod bars;
mod hole;
mod planned;
mod ram;
mod request;
mod table;
mod units;

use thiserror::Error;

use crate::AddressRange;

use arch::{ECAM, HOLES, IO_WINDOW, PAGE};
use hole::Hole;
use planned::Shortage;
use units::{FOUR_GIB, GIB};

pub use bar::{BarRequest, BarSpace, PlacedBar};
pub use planned::{Layout, NoRoom};
pub use request::{CpuReach, IoReach, LayoutRequest, Reserved, Spare};

/// The alignment of the 64-bit window.
const WINDOW_ALIGN: u64 = GIB;

/// What could not be placed, and why; what was asked for, what there is, and what was planned
/// before that, as tables.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("no room in the guest's address space for {what}: {why}\n{tables}")]
pub struct LayoutError {
    what: String,
    why: String,
    tables: String,
    is_ram: bool,
}

impl Layout {
    /// Plans the addresses of RAM, windows and BARs.
    ///
    /// The window of 32-bit BARs is larger if these BARs and the room for later ones need more, and
    /// RAM then has less below 4 GiB. 64-bit BARs go below 4 GiB only if there is no room for them
    /// above RAM.
    ///
    /// # Errors
    ///
    /// [`LayoutError`] names RAM, or the first BAR or spare room that has no place.
    pub fn plan(request: &LayoutRequest<'_>) -> Result<Self, LayoutError> {
        let mut attempts = HOLES.iter().map(|hole| plan_with_hole(request, hole));
        let first = attempts.next().unwrap_or_else(|| Ok(Self::default()));
        attempts.fold(first, |best, next| match (best, next) {
            (Ok(plan), _) | (Err(_), Ok(plan)) => Ok(plan),
            // The next hole has more room for BARs, and there is less for RAM.
            (Err(best), Err(next)) if next.is_ram => Err(best),
            (Err(_), Err(next)) => Err(next),
        })
    }

    /// The same layout with other BARs in its windows, for a guest that boots again with other
    /// devices. A BAR that has no room is left out: the guest may find room for it.
    pub fn with_bars(&self, bars: &[BarRequest]) -> Self {
        let mut plan = Self { bars: Vec::new(), ..self.clone() };
        // The BARs before the first that does not fit are placed.
        let _ = bars::place(bars, &[], &mut plan);
        plan
    }

    /// Checks that BARs of devices that come while the guest runs have room in the windows, beside
    /// the BARs that the guest has `placed`.
    ///
    /// # Errors
    ///
    /// [`NoRoom`] names the first BAR without room.
    pub fn room_for(&self, bars: &[BarRequest], placed: &[PlacedBar]) -> Result<(), NoRoom> {
        bars::fit(bars, placed, self)
    }
}

fn plan_with_hole(request: &LayoutRequest<'_>, hole: &Hole) -> Result<Layout, LayoutError> {
    let reachable = request.reachable();
    let mut plan = Layout { ecam: ECAM, io: IO_WINDOW, ..Layout::default() };
    plan.mmio32 = largest_within(&reachable, hole.window);
    let placed = ram::place(request, &reachable, hole, &mut plan);
    placed.map_err(|shortage| error(shortage, true, request, &plan))?;
    plan.mmio64 = window64(request, &reachable, plan.ram_end());
    let placed = bars::place(request.bars, request.spare, &mut plan);
    placed.map_err(|shortage| error(shortage, false, request, &plan))?;
    Ok(plan)
}

fn error(
    shortage: Shortage,
    is_ram: bool,
    request: &LayoutRequest<'_>,
    so_far: &Layout,
) -> LayoutError {
    let Shortage { what, why } = shortage;
    let tables = format!("{request}planned so far:\n{so_far}");
    LayoutError { what, why, tables, is_ram }
}

fn largest_within(reachable: &[AddressRange], bounds: AddressRange) -> AddressRange {
    let parts = reachable.iter().map(|range| range.intersection(&bounds).aligned(PAGE));
    parts.max_by_key(|part| part.size).unwrap_or_default()
}

/// The reachable piece above RAM into which all 64-bit BARs fit, also later ones, or else the
/// largest.
fn window64(request: &LayoutRequest<'_>, reachable: &[AddressRange], ram_end: u64) -> AddressRange {
    let above = AddressRange::between(ram_end.max(FOUR_GIB), u64::MAX);
    let pieces = reachable.iter().map(|range| range.intersection(&above).aligned(WINDOW_ALIGN));
    let pieces: Vec<_> = pieces.filter(|piece| !piece.is_empty()).collect();
    let fitting = pieces.iter().find(|piece| bars::fit64(request, **piece));
    let largest = || pieces.iter().max_by_key(|piece| piece.size);
    fitting.or_else(largest).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests;
