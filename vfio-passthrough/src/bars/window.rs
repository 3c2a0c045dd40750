//! A window is a direct area of a BAR that is mapped into this process. It is placed in guest
//! memory at the BAR's address, and there it is mapped for DMA of the guest's other devices.

use std::io;
use std::sync::Arc;

use crate::address::{BarIndex, ByteRange, Iova};
use crate::backend::{Device, ExportedMmap, RegionInfo, RegionMmap};
use crate::dma::{self, DmaSpace, Mapping};
use crate::host::{HostMemory, MemorySlot, MemorySlots};

use super::areas::DirectArea;

/// A mapped area of a BAR; or the page of a BAR that is smaller than a page, which is mapped for DMA
/// only, and has no memory slot.
pub struct Window {
    device: Arc<dyn Device>,
    region: RegionInfo,
    bar: BarIndex,
    area: ByteRange,
    mmap: Arc<RegionMmap>,
    /// The guest physical address, and the memory slot there, if it has one.
    placed: Option<(u64, Option<MemorySlot>)>,
    /// The mapping for DMA of other devices.
    mapping: Option<Mapping>,
    /// The IOMMU refused the mapping at this address. It is not retried until the window moves.
    refused: bool,
}

impl Window {
    /// Maps an area of a BAR's region into this process. It is not placed yet.
    ///
    /// # Errors
    ///
    /// The errno of `mmap`.
    pub fn new(
        device: Arc<dyn Device>,
        region: &RegionInfo,
        bar: BarIndex,
        area: DirectArea,
    ) -> io::Result<Self> {
        let (mmap, region, area) = (device.clone().mmap(region, area.0)?, region.clone(), area.0);
        let (mmap, placed, mapping) = (Arc::new(mmap), None, None);
        Ok(Self { device, region, bar, area, mmap, placed, mapping, refused: false })
    }

    /// The BAR of this area.
    pub fn bar(&self) -> BarIndex {
        self.bar
    }

    /// Unmaps the window from other devices' DMA, unless it is at the address for a BAR at `base`.
    /// `None` is a BAR that decodes nothing. Returns whether it was unmapped.
    ///
    /// # Errors
    ///
    /// [`dma::Error::Unmap`]: the mapping stays, and the next call retries it.
    pub fn unmap_unless_at(&mut self, base: Option<u64>) -> Result<bool, dma::Error> {
        let wanted = self.address(base);
        let elsewhere = |mapping: &&mut Mapping| Some(mapping.range().start()) != wanted;
        let Some(mapping) = self.mapping.as_mut().filter(elsewhere) else {
            return Ok(false);
        };
        mapping.try_unmap()?;
        self.mapping = None;
        Ok(true)
    }

    /// Removes the memory slot, unless it is at the address for a BAR at `base`. Returns whether
    /// the slot was removed.
    ///
    /// # Errors
    ///
    /// The error of [`MemorySlot::remove`]: the slot stays, and the next call retries it.
    pub fn remove_unless_at(&mut self, base: Option<u64>) -> io::Result<bool> {
        let wanted = self.address(base);
        let Some((_, slot)) = self.placed.as_mut().filter(|(at, _)| Some(*at) != wanted) else {
            return Ok(false);
        };
        slot.as_mut().map_or(Ok(()), MemorySlot::remove)?;
        let had_slot = slot.is_some();
        self.placed = None;
        self.refused = false;
        Ok(had_slot)
    }

    /// Replaces the device's memory by zeros for good. If the memory slot could not be removed, the
    /// guest reads zeros there.
    ///
    /// # Errors
    ///
    /// The errno of `mmap`.
    pub fn replace_by_zeros(&self) -> io::Result<()> {
        self.mmap.replace_by_zeros()
    }

    /// Places the window for a BAR at `base`, unless it is placed already.
    ///
    /// # Errors
    ///
    /// The error of [`MemorySlots::map`], for example because of an overlap. The window stays
    /// trapped: slow, but correct.
    pub fn place_at(&mut self, base: Option<u64>, slots: &Arc<dyn MemorySlots>) -> io::Result<()> {
        if let Some(gpa) = self.address(base).filter(|_| self.placed.is_none()) {
            let place = || slots.place(gpa, self.mmap.clone());
            self.placed = Some((gpa, (!self.is_small()).then(place).transpose()?));
        }
        Ok(())
    }

    /// Maps the window for other devices at the address where it is placed. Returns whether it was
    /// mapped by this call. The device must decode the BAR: the kernel faults its pages in
    /// (follow_fault_pfn).
    ///
    /// # Errors
    ///
    /// The error of [`DmaSpace::map`]. The mapping is not retried until the window moves.
    pub fn map(&mut self, space: &DmaSpace) -> Result<bool, dma::Error> {
        let free = self.mapping.is_none() && !self.refused;
        let Some((gpa, _)) = self.placed.as_ref().filter(|_| free) else {
            return Ok(false);
        };
        let Some(memory) = self.memory() else {
            return Ok(false);
        };
        let mapped = space.map(Iova(*gpa), memory);
        self.refused = mapped.is_err();
        self.mapping = Some(mapped?);
        Ok(true)
    }

    /// The mapped area; with its dma-buf, if the address space can map one. `None` if that needs a
    /// dma-buf: there is none of a page that is larger than its BAR.
    fn memory(&self) -> Option<Arc<dyn HostMemory>> {
        match self.device.export(&self.region, self.area) {
            Ok(dma_buf) => Some(Arc::new(ExportedMmap::new(self.mmap.clone(), dma_buf))),
            Err(error) if self.is_small() && error.raw_os_error() != Some(libc::ENOTTY) => None,
            Err(_) => Some(self.mmap.clone()),
        }
    }

    /// Whether the BAR is smaller than its page.
    fn is_small(&self) -> bool {
        self.area.size() > self.region.size
    }

    /// The address of the area. The page of a small BAR is only mapped if the BAR is at its start.
    fn address(&self, base: Option<u64>) -> Option<u64> {
        let is_at_start = |base: &u64| base & self.area.size().wrapping_sub(1) == 0;
        let base = base.filter(|base| !self.is_small() || is_at_start(base))?;
        base.checked_add(self.area.start())
    }
}
