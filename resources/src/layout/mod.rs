//! The guest's physical layout, planned before boot.
//!
//! An assigned device uses guest physical addresses as IOVAs. So RAM must lie where the IOMMU
//! translates, and BARs should, so that devices can reach each other. RAM has several regions if
//! reserved addresses lie between them.
//!
//! ```text
//! 0                  RAM
//! 3 GiB (2 or 1)     window of 32-bit BARs
//! 0xf000_0000        ECAM
//! 0xfec0_0000        IOAPIC, local APICs, KVM's own pages
//! 4 GiB              RAM
//! ...                window of 64-bit BARs, up to the last address that CPUs and IOMMU reach
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

/// Where the 32-bit hole may begin. A higher start leaves more RAM below 4 GiB.
const HOLE_STARTS: [u64; 3] = [3 * GIB, 2 * GIB, GIB];
/// The ECAM window of bus 0.
const ECAM: AddressRange = AddressRange::new(0xf000_0000, MIB);
/// The ports for I/O BARs, above all fixed ports of a PC.
const IO_WINDOW: AddressRange = AddressRange::new(0xc000, 0x4000);
/// The alignment of the 64-bit window.
const WINDOW_ALIGN: u64 = GIB;

/// x86: a DMA write here is an interrupt, not a memory access (SDM 3A, Message Address Register),
/// even if the IOMMU's apertures contain it.
const INTERRUPTS: AddressRange = AddressRange::inclusive(0xfee0_0000, 0xfeef_ffff);
/// AMD: addresses of HyperTransport below 1 TiB, at which DMA reaches no memory (AMD I/O
/// Virtualization Technology 3.08, 2.1.2, table 3).
const HYPERTRANSPORT: AddressRange = AddressRange::inclusive(0xfd_0000_0000, 0xff_ffff_ffff);

/// The addresses that the CPUs of host and guest can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuReach {
    /// The width of guest physical addresses in bits.
    pub address_bits: u8,
    /// Whether HyperTransport reserves addresses below 1 TiB, as on AMD hosts.
    pub hypertransport: bool,
}

impl CpuReach {
    fn reach(&self) -> AddressRange {
        let end = 1_u64.checked_shl(self.address_bits.into());
        AddressRange::new(0, end.unwrap_or(u64::MAX))
    }
}

/// The addresses that the IOMMU translates.
#[derive(Debug, Clone, Copy)]
pub enum IoReach<'a> {
    /// No device is assigned, so no IOMMU restricts the layout.
    Unrestricted,
    /// The ranges of IOVAs that the IOMMU translates.
    Apertures(&'a [AddressRange]),
}

/// Addresses that the layout must not use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reserved {
    /// The addresses.
    pub range: AddressRange,
    /// The owner of the addresses, for errors.
    pub what: String,
}

/// The input of [`Layout::plan`].
#[derive(Debug, Clone, Copy)]
pub struct LayoutRequest<'a> {
    /// Bytes of RAM, a multiple of `ram_page`.
    pub ram: u64,
    /// The size in bytes of a page of RAM. Regions begin and end at multiples of it.
    pub ram_page: u64,
    /// The addresses that the CPUs can use.
    pub cpu: CpuReach,
    /// The addresses that the IOMMU translates.
    pub reach: IoReach<'a>,
    /// Reserved addresses, without those that x86 and AMD reserve.
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

    /// The addresses that CPUs and IOMMU both reach and nobody reserves, in ascending order.
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

impl Default for AddressRange {
    fn default() -> Self {
        Self::new(0, 0)
    }
}

/// RAM or a BAR for which the guest's address space has no room. The text has the reason, the
/// request, the available addresses and the plan so far.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("no room in the guest's address space for {what}: {why}\n{tables}")]
pub struct LayoutError {
    what: String,
    why: String,
    tables: String,
    is_ram: bool,
}

/// RAM or a BAR for which there is no room, and the reason.
struct Shortage {
    what: String,
    why: String,
}

impl Layout {
    /// Plans the addresses of RAM, windows and BARs.
    ///
    /// The 32-bit hole begins at 3 GiB, or lower if the 32-bit BARs need more room. 64-bit BARs go
    /// below 4 GiB only if there is no room for them above RAM.
    ///
    /// # Errors
    ///
    /// [`LayoutError`] names RAM, or the first BAR that has no room.
    pub fn plan(request: &LayoutRequest<'_>) -> Result<Self, LayoutError> {
        let mut attempts = HOLE_STARTS.iter().map(|hole| plan_with_hole(request, *hole));
        let first = attempts.next().unwrap_or_else(|| Ok(Self::default()));
        attempts.fold(first, |best, next| match (best, next) {
            (Ok(plan), _) | (Err(_), Ok(plan)) => Ok(plan),
            // A lower start of the hole makes more room for BARs and less for RAM.
            (Err(best), Err(next)) if next.is_ram => Err(best),
            (Err(_), Err(next)) => Err(next),
        })
    }

    /// The first address after RAM.
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

/// The reachable piece above RAM into which all 64-bit BARs fit, or else the largest.
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
