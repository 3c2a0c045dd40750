//! Direct areas of BARs in being: mapped into this process once, and placed in the guest's memory where the
//! guest put the BAR.

use std::io;
use std::sync::Arc;

use crate::address::{BarIndex, ByteRange};
use crate::backend::{Device, RegionInfo, RegionMmap};
use crate::host::{MemorySlot, MemorySlots};
use crate::layout::DirectArea;

/// An area that the guest can reach directly.
pub struct Window {
    bar: BarIndex,
    area: ByteRange,
    mmap: Arc<RegionMmap>,
    /// Where it is in the guest now.
    placed: Option<(u64, Box<dyn MemorySlot>)>,
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
        Ok(Self {
            bar,
            area: area.0,
            mmap,
            placed: None,
        })
    }

    /// The BAR that this is a part of.
    pub fn bar(&self) -> BarIndex {
        self.bar
    }

    /// Takes the window away unless it is where a BAR at `base` has it; `None` is a BAR that decodes nothing.
    /// True where it was taken away.
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
        Ok(true)
    }

    /// Takes the window away for good, and lets go of the device's memory even where the host VMM does not take its
    /// slot away: the guest then has zeros there.
    ///
    /// # Errors
    ///
    /// The first failure: of the host VMM, or of `mmap`.
    pub fn release(&mut self) -> io::Result<()> {
        let retired = self.retire(None).map(drop);
        let released = self.mmap.let_go();
        retired.and(released)
    }

    /// Puts the window where a BAR at `base` has it, unless it is placed. A place that the host VMM refuses,
    /// since it overlaps something, leaves the window trapped: accesses then go through the VMM, which is
    /// slow and right.
    pub fn place(&mut self, base: Option<u64>, slots: &dyn MemorySlots) -> io::Result<()> {
        if let Some(gpa) = self.address(base).filter(|_| self.placed.is_none()) {
            self.placed = Some((gpa, slots.place(gpa, self.mmap.clone())?));
        }
        Ok(())
    }

    fn address(&self, base: Option<u64>) -> Option<u64> {
        base.and_then(|base| base.checked_add(self.area.start()))
    }
}
