//! ```text
//! 0                  fixed devices of the VMM
//! 0x1000_0000        window of 32-bit BARs
//! 0x3f00_0000        ECAM
//! 1 GiB (2 or 4)     RAM; if it begins later, the window of 32-bit BARs is from 1 GiB up to it
//! ...                window of 64-bit BARs, from 4 GiB up to the last address that CPUs and IOMMU
//!                    reach
//! ```
//!
//! Where devices write their interrupts is the IOMMU driver's choice, which reports it as a reserved
//! region.

use crate::AddressRange;
use crate::layout::hole::Hole;
use crate::layout::units::{FOUR_GIB, GIB, MIB};

/// Where RAM may begin, and the window of 32-bit BARs below.
pub(in crate::layout) const HOLES: [Hole; 3] = [
    hole(AddressRange::between(0x1000_0000, ECAM.start), GIB),
    hole(AddressRange::between(GIB, 2 * GIB), 2 * GIB),
    hole(AddressRange::between(GIB, FOUR_GIB), FOUR_GIB),
];
/// The ECAM window of bus 0.
pub(in crate::layout) const ECAM: AddressRange = AddressRange::new(0x3f00_0000, MIB);
/// The ports for I/O BARs, which the host bridge shows as memory.
pub(in crate::layout) const IO_WINDOW: AddressRange = AddressRange::new(0xc000, 0x4000);
/// The largest page that a host may have.
pub(in crate::layout) const PAGE: u64 = 64 << 10;
/// No addresses are of interrupts on all machines.
pub(in crate::layout) const INTERRUPTS: AddressRange = AddressRange::new(0, 0);
/// No CPU has HyperTransport.
pub(in crate::layout) const HYPERTRANSPORT: AddressRange = AddressRange::new(0, 0);

const fn hole(window: AddressRange, ram_start: u64) -> Hole {
    Hole { addresses: AddressRange::between(0, ram_start), window, ram_start }
}

#[cfg(test)]
mod tests;
