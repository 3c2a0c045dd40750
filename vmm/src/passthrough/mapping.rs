//! Maps the guest's RAM for DMA.

use std::sync::Arc;

use resources::AddressRange;
use vfio_passthrough::dma::{Mapping, allow_locked_memory};
use vfio_passthrough::host::HostMemory;
use vfio_passthrough::{DmaSpace, Iova};
use vm_memory::GuestMemoryRegion;

use crate::error::Error;
use crate::guest::memory::Ram;

/// The IOVA ranges that the IOMMU can map.
pub(crate) fn apertures(dma: &DmaSpace) -> Result<Vec<AddressRange>, Error> {
    let ranges = dma.iova_ranges()?;
    Ok(ranges.iter().map(|range| AddressRange::new(range.start(), range.size())).collect())
}

/// Maps all of `ram` for DMA, which pins it; maps all regions or none. `allow` checks that as many
/// bytes can be locked.
pub(crate) fn map(
    dma: &DmaSpace,
    ram: &Ram,
    allow: impl FnOnce(u64) -> Result<(), Error>,
) -> Result<Vec<Mapping>, Error> {
    let sizes = ram.regions().iter().map(|region| region.len());
    let size = sizes.fold(0, u64::saturating_add);
    // Groups that cannot share a container pin the memory once for each container.
    allow(size.saturating_mul(dma.address_spaces() as u64))?;
    let memory = ram.regions().iter().map(|region| {
        let memory: Arc<dyn HostMemory> = region.clone();
        (Iova(region.start_addr().0), memory)
    });
    Ok(dma.map_all(memory)?)
}

/// [`map`] at the start, before whose first step the limit was checked for one container.
pub(crate) fn map_at_start(dma: &DmaSpace, ram: &Ram) -> Result<Vec<Mapping>, Error> {
    let is_checked = dma.address_spaces() <= 1;
    map(dma, ram, |bytes| if is_checked { Ok(()) } else { Ok(allow_locked_memory(bytes)?) })
}
