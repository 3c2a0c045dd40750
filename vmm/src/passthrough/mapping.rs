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

/// Maps all of `ram` for DMA, which pins it; maps all regions or none.
pub(crate) fn map(dma: &DmaSpace, ram: &Ram) -> Result<Vec<Mapping>, Error> {
    allow_locked(dma, ram)?;
    let memory = ram.regions().iter().map(|region| {
        let memory: Arc<dyn HostMemory> = region.clone();
        (Iova(region.start_addr().0), memory)
    });
    Ok(dma.map_all(memory)?)
}

/// Groups that cannot share a container pin the memory once for each container. The limit was
/// checked for one before the devices were opened.
fn allow_locked(dma: &DmaSpace, ram: &Ram) -> Result<(), Error> {
    let spaces = dma.address_spaces();
    if spaces > 1 {
        let sizes = ram.regions().iter().map(|region| region.len());
        let size = sizes.fold(0, u64::saturating_add);
        allow_locked_memory(size.saturating_mul(spaces as u64))?;
    }
    Ok(())
}
