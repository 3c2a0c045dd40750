//! Direct areas of BARs in being: mapped into this process once, and placed in the guest's memory where the
//! guest put the BAR; there other devices of the guest reach them by DMA, too.

use std::io;
use std::sync::Arc;

use crate::address::{BarIndex, ByteRange, Iova};
use crate::backend::{Device, RegionInfo, RegionMmap};
use crate::dma::{self, DmaSpace, Mapping};
use crate::host::{MemorySlot, MemorySlots};

use super::areas::DirectArea;

/// An area that the guest can reach directly.
pub struct Window {
    bar: BarIndex,
    area: ByteRange,
    mmap: Arc<RegionMmap>,
    /// Where it is in the guest now.
    placed: Option<(u64, MemorySlot)>,
    /// Where other devices reach it.
    mapping: Option<Mapping>,
    /// They do not, where it is now.
    refused: bool,
}

impl Window {
    /// Maps an area of a BAR's region; the guest does not see it yet.
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
        let mmap = Arc::new(device.mmap(region, area.0)?);
        Ok(Self { bar, area: area.0, mmap, placed: None, mapping: None, refused: false })
    }

    /// The BAR that this is a part of.
    pub fn bar(&self) -> BarIndex {
        self.bar
    }

    /// Other devices do not reach it any more, unless it is where a BAR at `base` has it; `None` is a BAR that
    /// decodes nothing. True where they did.
    ///
    /// # Errors
    ///
    /// [`dma::Error::Unmap`]: they reach it until the next try.
    pub fn unmap(&mut self, base: Option<u64>) -> Result<bool, dma::Error> {
        let wanted = self.address(base);
        let elsewhere = |mapping: &&mut Mapping| Some(mapping.range().start()) != wanted;
        let Some(mapping) = self.mapping.as_mut().filter(elsewhere) else {
            return Ok(false);
        };
        mapping.end()?;
        self.mapping = None;
        Ok(true)
    }

    /// Takes the window away unless it is where a BAR at `base` has it. True where it was taken away.
    ///
    /// # Errors
    ///
    /// The host VMM could not: the window stays where it is until the next try.
    pub fn retire(&mut self, base: Option<u64>) -> io::Result<bool> {
        let wanted = self.address(base);
        let Some((_, slot)) = self.placed.as_mut().filter(|(at, _)| Some(*at) != wanted) else {
            return Ok(false);
        };
        slot.remove()?;
        self.placed = None;
        self.refused = false;
        Ok(true)
    }

    /// Lets go of the device's memory for good, even where the host VMM has not taken its slot away: the guest then
    /// has zeros there.
    ///
    /// # Errors
    ///
    /// The errno of `mmap`.
    pub fn release(&mut self) -> io::Result<()> {
        self.mmap.let_go()
    }

    /// Puts the window where a BAR at `base` has it, unless it is placed. A place that the host VMM refuses,
    /// since it overlaps something, leaves the window trapped: accesses then go through the VMM, which is
    /// slow and right.
    pub fn place(&mut self, base: Option<u64>, slots: &Arc<dyn MemorySlots>) -> io::Result<()> {
        if let Some(gpa) = self.address(base).filter(|_| self.placed.is_none()) {
            self.placed = Some((gpa, slots.place(gpa, self.mmap.clone())?));
        }
        Ok(())
    }

    /// Lets other devices reach it where it is placed; true where they did not. The kernel asks the device for
    /// its pages, so it must decode by now.
    ///
    /// # Errors
    ///
    /// Those of [`DmaSpace::map`]. Nothing is tried again before it is placed somewhere else.
    pub fn map(&mut self, space: &DmaSpace) -> Result<bool, dma::Error> {
        let free = self.mapping.is_none() && !self.refused;
        let Some((gpa, _)) = self.placed.as_ref().filter(|_| free) else {
            return Ok(false);
        };
        let mapped = space.map(Iova(*gpa), self.mmap.clone());
        self.refused = mapped.is_err();
        self.mapping = Some(mapped?);
        Ok(true)
    }

    fn address(&self, base: Option<u64>) -> Option<u64> {
        base.and_then(|base| base.checked_add(self.area.start()))
    }
}
