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
    /// The address that the host VMM refused: not tried again until the guest moves the BAR.
    refused: Option<u64>,
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
            refused: None,
        })
    }

    /// The BAR that this is a part of.
    pub fn bar(&self) -> BarIndex {
        self.bar
    }

    /// Takes the window away unless it is where a BAR at `base` has it; `None` is a BAR that decodes nothing.
    ///
    /// # Errors
    ///
    /// The host VMM could not: the slot is leaked, with its memory, and counts as gone.
    pub fn retire(&mut self, base: Option<u64>) -> io::Result<()> {
        let wanted = self.address(base);
        self.refused = self.refused.filter(|refused| Some(*refused) == wanted);
        match self.placed.take() {
            Some((at, slot)) if Some(at) != wanted => slot.remove(),
            kept => {
                self.placed = kept;
                Ok(())
            }
        }
    }

    /// Puts the window where a BAR at `base` has it. A place that the host VMM refuses, since it overlaps
    /// something, leaves the window trapped: accesses then go through the VMM, which is slow and right.
    pub fn place(&mut self, base: Option<u64>, slots: &dyn MemorySlots) -> io::Result<()> {
        let Some(gpa) = self
            .address(base)
            .filter(|gpa| self.placed.is_none() && self.refused != Some(*gpa))
        else {
            return Ok(());
        };
        let result = slots.place(gpa, self.mmap.clone());
        self.refused = result.is_err().then_some(gpa);
        self.placed = Some((gpa, result?));
        Ok(())
    }

    fn address(&self, base: Option<u64>) -> Option<u64> {
        base.and_then(|base| base.checked_add(self.area.start()))
    }
}
