//! The guest's physical layout, planned before boot.
//!
//! With an assigned device, guest physical addresses are the device's DMA addresses: RAM may only lie
//! where the IOMMU translates, and BARs should, so that devices can reach each other.
//!
//! ```text
//! 0                  RAM
//! 3 GiB (or 2 GiB)   window of 32-bit BARs
//! 0xf000_0000        ECAM
//! 0xfec0_0000        IOAPIC, local APICs, KVM's own pages
//! 4 GiB              RAM
//! ...                window of 64-bit BARs, up to the last address that guest and IOMMU reach
//! ```

mod bars;
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
const HOLE_STARTS: [u64; 2] = [3 * GIB, 2 * GIB];
/// The configuration space of bus 0.
const ECAM: AddressRange = AddressRange::new(0xf000_0000, MIB);
/// The ports for I/O BARs: above all that a PC has fixed.
const IO_WINDOW: AddressRange = AddressRange::new(0xc000, 0x4000);
/// A RAM region starts on a huge page, so that guest and host pages match.
const RAM_ALIGN: u64 = 2 * MIB;
/// Kernel, initramfs and boot data are loaded here: RAM must begin with at least this much.
const LOW_RAM: u64 = 64 * MIB;
/// A 64-bit window starts at a multiple of this, or of its largest BAR.
const WINDOW_ALIGN: u64 = GIB;

/// Never RAM and never a BAR, whatever the IOMMU says.
const RESERVED: [AddressRange; 2] = [
    // x86: writes here are interrupts, not memory accesses.
    AddressRange::inclusive(0xfee0_0000, 0xfeef_ffff),
    // AMD: HyperTransport's own addresses just below 1 TiB; DMA to them does not arrive.
    AddressRange::inclusive(0xfd_0000_0000, 0xff_ffff_ffff),
];

/// What the IOMMU can reach.
#[derive(Debug, Clone, Copy)]
pub enum IoReach<'a> {
    /// No device is assigned: nothing restricts the layout.
    Unrestricted,
    /// The ranges of IOVAs that the IOMMU translates.
    Apertures(&'a [AddressRange]),
}

/// What a layout is planned from.
#[derive(Debug, Clone, Copy)]
pub struct LayoutRequest<'a> {
    /// Bytes of RAM, a multiple of the page size.
    pub ram: u64,
    /// Physical address bits of the guest's CPUs (CPUID 0x8000_0008).
    pub address_bits: u8,
    /// What the IOMMU can reach.
    pub reach: IoReach<'a>,
    /// Addresses that must stay free besides those that x86 and AMD reserve.
    pub reserved: &'a [AddressRange],
    /// The BARs of all assigned functions.
    pub bars: &'a [BarRequest],
}

/// A plan in which nothing overlaps and everything is reachable.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout {
    /// RAM, in ascending order.
    pub ram: Vec<AddressRange>,
    /// Configuration space of bus 0.
    pub ecam: AddressRange,
    /// The window of 32-bit memory BARs.
    pub mmio32: AddressRange,
    /// The window of 64-bit memory BARs; empty if there is no room above RAM.
    pub mmio64: AddressRange,
    /// The window of I/O BARs.
    pub io: AddressRange,
    /// Where each BAR is, largest first.
    pub bars: Vec<PlacedBar>,
}

impl Default for AddressRange {
    fn default() -> Self {
        Self::new(0, 0)
    }
}

/// What could not be placed, and why.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("no place in the guest's address space for {what}: {why}\nplanned so far:\n{plan}")]
pub struct LayoutError {
    what: String,
    why: String,
    plan: String,
}

impl LayoutError {
    fn new(what: impl ToString, why: impl ToString, so_far: &Layout) -> Self {
        Self {
            what: what.to_string(),
            why: why.to_string(),
            plan: so_far.to_string(),
        }
    }
}

impl Layout {
    /// Plans where RAM, windows and BARs go.
    ///
    /// RAM starts the hole at 3 GiB unless the 32-bit BARs need more; 64-bit BARs go below 4 GiB only
    /// if nothing above RAM is reachable.
    pub fn plan(request: &LayoutRequest<'_>) -> Result<Self, LayoutError> {
        let attempts = HOLE_STARTS.iter().map(|hole| plan_with_hole(request, *hole));
        let first_error = |best: Result<Self, LayoutError>, next| match (best, next) {
            (Ok(plan), _) | (Err(_), Ok(plan)) => Ok(plan),
            (Err(error), Err(_)) => Err(error),
        };
        attempts
            .reduce(first_error)
            .unwrap_or_else(|| Ok(Self::default()))
    }

    /// The last address of RAM and one.
    pub fn ram_end(&self) -> u64 {
        self.ram.last().map_or(0, AddressRange::end)
    }
}

fn plan_with_hole(request: &LayoutRequest<'_>, hole_start: u64) -> Result<Layout, LayoutError> {
    let reachable = reachable(request);
    let mut plan = Layout {
        ecam: ECAM,
        io: IO_WINDOW,
        ..Layout::default()
    };
    plan.mmio32 = largest_within(&reachable, AddressRange::between(hole_start, ECAM.start));
    plan.ram = place_ram(request, &reachable, hole_start, &plan)?;
    plan.mmio64 = window64(request, &reachable, plan.ram_end());
    plan.bars = bars::place(request.bars, &plan)?;
    Ok(plan)
}

/// Every address that CPUs, IOMMU and devices all reach, in ascending order.
fn reachable(request: &LayoutRequest<'_>) -> Vec<AddressRange> {
    let addresses = 1_u64.checked_shl(request.address_bits.into()).unwrap_or(u64::MAX);
    let cpu = AddressRange::new(0, addresses);
    let mut ranges: Vec<_> = match request.reach {
        IoReach::Unrestricted => vec![cpu],
        IoReach::Apertures(apertures) => apertures
            .iter()
            .map(|aperture| aperture.intersection(&cpu))
            .collect(),
    };
    ranges.retain(|range| !range.is_empty());
    ranges.sort_unstable();
    subtract(subtract(ranges, &RESERVED), request.reserved)
}

fn largest_within(reachable: &[AddressRange], bounds: AddressRange) -> AddressRange {
    let parts = reachable
        .iter()
        .map(|range| range.intersection(&bounds).aligned(PAGE));
    parts.max_by_key(|part| part.size).unwrap_or_default()
}

fn place_ram(
    request: &LayoutRequest<'_>,
    reachable: &[AddressRange],
    hole_start: u64,
    so_far: &Layout,
) -> Result<Vec<AddressRange>, LayoutError> {
    let hole = AddressRange::between(hole_start, FOUR_GIB);
    let mut left = request.ram;
    let mut take = |free: AddressRange| {
        let size = left.min(free.size & !PAGE.wrapping_sub(1));
        left = left.saturating_sub(size);
        AddressRange::new(free.start, size)
    };
    let free = subtract(reachable.to_vec(), &[hole])
        .into_iter()
        .map(|range| range.aligned(RAM_ALIGN));
    let ram: Vec<_> = free.map(&mut take).filter(|range| !range.is_empty()).collect();
    let so_far = Layout {
        ram: ram.clone(),
        ..so_far.clone()
    };
    let what = format!("{} MiB of RAM", request.ram / MIB);
    if left > 0 {
        let why = format!(
            "{} MiB are left over when all that the CPUs and the IOMMU reach is used",
            left / MIB
        );
        return Err(LayoutError::new(what, why, &so_far));
    }
    let needed = AddressRange::new(0, request.ram.min(LOW_RAM));
    match ram.first() {
        Some(low) if low.contains(&needed) => Ok(ram),
        _ => Err(LayoutError::new(
            what,
            format!("the IOMMU does not reach {needed}, where RAM begins"),
            &so_far,
        )),
    }
}

/// All that is reachable in one piece above RAM, from the first piece in which the 64-bit BARs fit.
fn window64(request: &LayoutRequest<'_>, reachable: &[AddressRange], ram_end: u64) -> AddressRange {
    let above = AddressRange::between(ram_end.max(FOUR_GIB), u64::MAX);
    let need = bars::need(request.bars, BarSpace::Memory64);
    let align = bars::largest(request.bars, BarSpace::Memory64).max(WINDOW_ALIGN);
    let windows = reachable
        .iter()
        .map(|range| range.intersection(&above).aligned(align));
    let mut fitting = windows.filter(|window| window.size >= need.max(PAGE));
    fitting.next().unwrap_or_default()
}

#[cfg(test)]
mod tests;
