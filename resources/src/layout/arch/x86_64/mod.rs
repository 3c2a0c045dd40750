//! ```text
//! 0                  RAM
//! 3 GiB (2 or 1)     window of 32-bit BARs
//! 0xf000_0000        ECAM
//! 0xfec0_0000        IOAPIC, local APICs, KVM's own pages
//! 4 GiB              RAM
//! ...                window of 64-bit BARs, up to the last address that CPUs and IOMMU reach
//! ```

use crate::AddressRange;
use crate::layout::hole::Hole;
use crate::layout::units::{FOUR_GIB, GIB, MIB};

/// Where the 32-bit hole may be. A higher start leaves more RAM below 4 GiB.
pub(in crate::layout) const HOLES: [Hole; 3] = [hole(3 * GIB), hole(2 * GIB), hole(GIB)];
/// The ECAM window of bus 0.
pub(in crate::layout) const ECAM: AddressRange = AddressRange::new(0xf000_0000, MIB);
/// The ports for I/O BARs, above all fixed ports of a PC.
pub(in crate::layout) const IO_WINDOW: AddressRange = AddressRange::new(0xc000, 0x4000);
/// The size of a page of the host.
pub(in crate::layout) const PAGE: u64 = 4096;
/// A DMA write here is an interrupt, not a memory access (SDM 3A, Message Address Register), even
/// if the IOMMU's apertures contain it.
pub(in crate::layout) const INTERRUPTS: AddressRange =
    AddressRange::inclusive(0xfee0_0000, 0xfeef_ffff);
/// AMD: addresses of HyperTransport below 1 TiB, at which DMA reaches no memory (AMD I/O
/// Virtualization Technology 3.08, 2.1.2, table 3).
pub(in crate::layout) const HYPERTRANSPORT: AddressRange =
    AddressRange::inclusive(0xfd_0000_0000, 0xff_ffff_ffff);

const fn hole(start: u64) -> Hole {
    let addresses = AddressRange::between(start, FOUR_GIB);
    Hole { addresses, window: AddressRange::between(start, ECAM.start), ram_start: 0 }
}

#[cfg(test)]
mod tests;
