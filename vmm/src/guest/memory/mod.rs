//! Guest RAM: private memory or a memfd, of ordinary or huge pages.

mod backing;
mod populate;

use std::sync::Arc;

use populate::Populating;
use resources::AddressRange;
use vfio_passthrough::host::{HostMemory, MemorySlot};
use vfio_passthrough::kvm::KvmMemory;
use vm_memory::{GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use crate::config::Memory;
use crate::error::Error;

/// All of the guest's RAM, independent of a VM: it can be filled, mapped for DMA, and then placed. A
/// copy is the same memory.
#[derive(Clone)]
pub struct Ram {
    memory: GuestMemoryMmap,
    regions: Vec<Arc<GuestRegionMmap>>,
}

impl Ram {
    /// Reserves `ranges` of guest physical memory, of ordinary pages. The kernel allocates
    /// pages only when they are touched.
    pub fn new(ranges: &[AddressRange]) -> Result<Self, Error> {
        Self::of(ranges, Memory::default())
    }

    /// Reserves `ranges` of guest physical memory as [`new`](Self::new) does, with the options of
    /// `memory`. `memory.size` is ignored.
    pub(crate) fn of(ranges: &[AddressRange], memory: Memory) -> Result<Self, Error> {
        let regions = ranges.iter().map(|range| backing::map(range, memory));
        let regions = regions.collect::<Result<Vec<_>, _>>()?;
        let memory = GuestMemoryMmap::from_arc_regions(regions.clone())
            .map_err(|e| Error::Ram { size: 0, why: e.to_string() })?;
        Ok(Self { memory, regions })
    }

    /// The memory, for reads and writes.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// The regions, in ascending order.
    pub(crate) fn regions(&self) -> &[Arc<GuestRegionMmap>] {
        &self.regions
    }

    /// The guest physical addresses of the regions.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = AddressRange> {
        self.regions.iter().map(|region| AddressRange::new(region.start_addr().0, region.len()))
    }

    /// Starts to allocate all pages.
    pub(crate) fn populate(&self) -> Populating {
        Populating::begin(&self.regions)
    }

    /// Places each region in a memory slot.
    pub(crate) fn place(&self, slots: &Arc<KvmMemory>) -> Result<Vec<MemorySlot>, Error> {
        let place = |region: &Arc<GuestRegionMmap>| {
            let memory = Arc::clone(region) as Arc<dyn HostMemory>;
            slots
                .place(region.start_addr().0, memory)
                .map_err(Error::system("KVM_SET_USER_MEMORY_REGION"))
        };
        self.regions.iter().map(place).collect()
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    #[test]
    fn regions_match_the_plan() {
        let plan = [AddressRange::new(0, 64 << 20), AddressRange::new(4 << 30, 2 << 20)];
        let ram = Ram::new(&plan).unwrap();
        ram.memory().write_obj(7_u32, GuestAddress(4 << 30)).unwrap();
        assert_eq!(ram.memory().read_obj::<u32>(GuestAddress(4 << 30)).unwrap(), 7);
        assert!(ram.memory().write_obj(7_u32, GuestAddress(64 << 20)).is_err());
        assert_eq!(ram.regions().len(), 2);
    }

    #[test]
    fn reports_a_failed_mapping_with_its_remedy() {
        let text = Ram::new(&[AddressRange::new(0, 1 << 60)]).err().unwrap().to_string();
        assert!(
            text.starts_with("guest RAM of 1099511627776 MiB could not be mapped: ")
                && text.contains("--memory")
                && text.contains("ulimit -v unlimited"),
            "{text}"
        );
    }
}
