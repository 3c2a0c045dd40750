//! The guest's physical layout, planned before boot.
//!
//! With an assigned device, guest physical addresses are the device's DMA addresses: RAM may only lie
//! where the IOMMU translates, and BARs should, so that devices can reach each other. RAM goes around what is
//! reserved, in several regions if need be.
//!
//! ```text
//! 0                  RAM
//! 3 GiB (2 or 1)     window of 32-bit BARs
//! 0xf000_0000        ECAM
//! 0xfec0_0000        IOAPIC, local APICs, KVM's own pages
//! 4 GiB              RAM
//! ...                window of 64-bit BARs, up to the last address that guest and IOMMU reach
//! ```

mod bars;
mod ram;
mod table;

use thiserror::Error;

use crate::AddressRange;
use crate::range::subtract;

pub use bars::{BarRequest, BarSpace, PlacedBar};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const FOUR_GIB: u64 = 4 * GIB;
const PAGE: u64 = 4096;

/// What a planner may start the 32-bit hole at: the higher, the more RAM is below it.
const HOLE_STARTS: [u64; 3] = [3 * GIB, 2 * GIB, GIB];
/// The configuration space of bus 0.
const ECAM: AddressRange = AddressRange::new(0xf000_0000, MIB);
/// The ports for I/O BARs: above all that a PC has fixed.
const IO_WINDOW: AddressRange = AddressRange::new(0xc000, 0x4000);
/// A 64-bit window starts at a multiple of this.
const WINDOW_ALIGN: u64 = GIB;

/// x86: writes here are interrupts, not memory accesses (SDM 3A, Message Address Register), whatever
/// the IOMMU says.
const INTERRUPTS: AddressRange = AddressRange::inclusive(0xfee0_0000, 0xfeef_ffff);
/// AMD: HyperTransport's own addresses just below 1 TiB, which no DMA passes (AMD I/O Virtualization
/// Technology 3.08, 2.1.2, table 3).
const HYPERTRANSPORT: AddressRange = AddressRange::inclusive(0xfd_0000_0000, 0xff_ffff_ffff);

/// What the CPUs of host and guest reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuReach {
    /// Guest physical address bits.
    pub address_bits: u8,
    /// Whether the addresses below 1 TiB are HyperTransport's, as on AMD hosts.
    pub hypertransport: bool,
}

impl CpuReach {
    fn reach(&self) -> AddressRange {
        let end = 1_u64.checked_shl(self.address_bits.into());
        AddressRange::new(0, end.unwrap_or(u64::MAX))
    }
}

/// What the IOMMU can reach.
#[derive(Debug, Clone, Copy)]
pub enum IoReach<'a> {
    /// No device is assigned: nothing restricts the layout.
    Unrestricted,
    /// The ranges of IOVAs that the IOMMU translates.
    Apertures(&'a [AddressRange]),
}

/// Addresses that must stay free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reserved {
    /// Where.
    pub range: AddressRange,
    /// What for and whose, for errors.
    pub what: String,
}

/// What a layout is planned from.
#[derive(Debug, Clone, Copy)]
pub struct LayoutRequest<'a> {
    /// Bytes of RAM, a multiple of `ram_page`.
    pub ram: u64,
    /// The size in bytes of the pages that RAM is made of: regions begin and end at multiples of it.
    pub ram_page: u64,
    /// What the CPUs reach.
    pub cpu: CpuReach,
    /// What the IOMMU can reach.
    pub reach: IoReach<'a>,
    /// Addresses that must stay free besides those that x86 and AMD reserve.
    pub reserved: &'a [Reserved],
    /// The BARs of all assigned functions.
    pub bars: &'a [BarRequest],
}

impl LayoutRequest<'_> {
    fn all_reserved(&self) -> impl Iterator<Item = (AddressRange, &str)> {
        let hypertransport = self.cpu.hypertransport.then_some(HYPERTRANSPORT);
        let asked = self.reserved.iter().map(|reserved| (reserved.range, reserved.what.as_str()));
        std::iter::once((INTERRUPTS, "interrupts"))
            .chain(hypertransport.map(|range| (range, "HyperTransport")))
            .chain(asked)
    }

    /// Every address that CPUs, IOMMU and devices all reach, in ascending order.
    fn reachable(&self) -> Vec<AddressRange> {
        let cpu = self.cpu.reach();
        let mut ranges: Vec<_> = match self.reach {
            IoReach::Unrestricted => vec![cpu],
            IoReach::Apertures(apertures) => {
                apertures.iter().map(|aperture| aperture.intersection(&cpu)).collect()
            }
        };
        ranges.sort_unstable();
        let mut end = 0;
        for range in &mut ranges {
            *range = AddressRange::between(range.start.max(end), range.end());
            end = end.max(range.end());
        }
        ranges.retain(|range| !range.is_empty());
        let holes: Vec<_> = self.all_reserved().map(|(range, _)| range).collect();
        subtract(ranges, &holes)
    }
}

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

impl Default for AddressRange {
    fn default() -> Self {
        Self::new(0, 0)
    }
}

/// What could not be placed, and why; what was asked for, what there is, and what was planned before that, as
/// tables.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("no place in the guest's address space for {what}: {why}\n{tables}")]
pub struct LayoutError {
    what: String,
    why: String,
    tables: String,
    is_ram: bool,
}

/// What could not be placed, and why.
struct Shortage {
    what: String,
    why: String,
}

impl Layout {
    /// Plans where RAM, windows and BARs go.
    ///
    /// RAM goes up to 3 GiB unless the 32-bit BARs need more room below 4 GiB; 64-bit BARs go below 4 GiB
    /// only if they have no place above RAM.
    ///
    /// # Errors
    ///
    /// [`LayoutError`] says what has no place: RAM, or the first BAR.
    pub fn plan(request: &LayoutRequest<'_>) -> Result<Self, LayoutError> {
        let mut attempts = HOLE_STARTS.iter().map(|hole| plan_with_hole(request, *hole));
        let first = attempts.next().unwrap_or_else(|| Ok(Self::default()));
        attempts.fold(first, |best, next| match (best, next) {
            (Ok(plan), _) | (Err(_), Ok(plan)) => Ok(plan),
            // The lower the hole begins, the more room there is for BARs, and the less for RAM.
            (Err(best), Err(next)) if next.is_ram => Err(best),
            (Err(_), Err(next)) => Err(next),
        })
    }

    /// The last address of RAM and one.
    pub fn ram_end(&self) -> u64 {
        self.ram.last().map_or(0, AddressRange::end)
    }
}

fn plan_with_hole(request: &LayoutRequest<'_>, hole_start: u64) -> Result<Layout, LayoutError> {
    let reachable = request.reachable();
    let mut plan = Layout { ecam: ECAM, io: IO_WINDOW, ..Layout::default() };
    plan.mmio32 = largest_within(&reachable, AddressRange::between(hole_start, ECAM.start));
    let placed = ram::place(request, &reachable, hole_start, &mut plan);
    placed.map_err(|shortage| error(shortage, true, request, &plan))?;
    plan.mmio64 = window64(request, &reachable, plan.ram_end());
    let placed = bars::place(request.bars, &mut plan);
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

/// One piece of what is reachable above RAM: the first in which all 64-bit BARs fit, else the largest.
fn window64(request: &LayoutRequest<'_>, reachable: &[AddressRange], ram_end: u64) -> AddressRange {
    let above = AddressRange::between(ram_end.max(FOUR_GIB), u64::MAX);
    let pieces = reachable.iter().map(|range| range.intersection(&above).aligned(WINDOW_ALIGN));
    let pieces: Vec<_> = pieces.filter(|piece| !piece.is_empty()).collect();
    let fitting = pieces.iter().find(|piece| bars::fit64(request.bars, **piece));
    let largest = || pieces.iter().max_by_key(|piece| piece.size);
    fitting.or_else(largest).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests;
