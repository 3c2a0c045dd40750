//! What a layout is planned from.

use std::fmt;

use super::arch::{HYPERTRANSPORT, INTERRUPTS};
use super::bar::{BarRequest, BarSpace};
use super::units::size;
use crate::AddressRange;
use crate::range::subtract;

/// The addresses that the CPUs of host and guest can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuReach {
    /// The width of guest physical addresses in bits.
    pub address_bits: u8,
    /// Whether HyperTransport reserves addresses below 1 TiB, as on AMD hosts.
    pub hypertransport: bool,
}

impl CpuReach {
    pub(super) fn reach(&self) -> AddressRange {
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

/// Room in a window that stays free, in one piece, for BARs that come later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spare {
    /// The address space. As with BARs, what is for 64-bit memory may be below 4 GiB.
    pub space: BarSpace,
    /// The size in bytes. A BAR of the largest power of two in it has room.
    pub size: u64,
    /// What asked for it, for errors.
    pub what: String,
}

impl fmt::Display for Spare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} for {}", size(self.size), self.space, self.what)
    }
}

/// The input of [`Layout::plan`](crate::Layout::plan).
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
    /// Reserved addresses, without those that the architecture reserves.
    pub reserved: &'a [Reserved],
    /// The BARs of all assigned functions.
    pub bars: &'a [BarRequest],
    /// Room for BARs that come later.
    pub spare: &'a [Spare],
}

impl LayoutRequest<'_> {
    pub(super) fn all_reserved(&self) -> impl Iterator<Item = (AddressRange, &str)> {
        let hypertransport = self.cpu.hypertransport.then_some((HYPERTRANSPORT, "HyperTransport"));
        let fixed = std::iter::once((INTERRUPTS, "interrupts")).chain(hypertransport);
        let asked = self.reserved.iter().map(|reserved| (reserved.range, reserved.what.as_str()));
        fixed.filter(|(range, _)| !range.is_empty()).chain(asked)
    }

    /// The addresses that CPUs and IOMMU both reach and nobody reserves, in ascending order.
    pub(super) fn reachable(&self) -> Vec<AddressRange> {
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
