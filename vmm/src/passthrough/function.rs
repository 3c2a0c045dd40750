//! An assigned function on this VMM's PCI bus.

use std::sync::Arc;

use devices::{PciFunction, SlotsFreed};
use vfio_passthrough::{BarIndex, ConfigEffects, PassthroughFunction, Space};

use super::coalesced::{Coalesce, CoalescedRange};
use crate::counters::{BarAccessCounts, FunctionCounts};

/// A function on the PCI bus with counted traps.
pub(crate) struct GuestFunction {
    function: Arc<PassthroughFunction>,
    accesses: Arc<BarAccessCounts>,
    coalesced: CoalescedRange,
}

impl PciFunction for GuestFunction {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.function.config_read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> SlotsFreed {
        self.apply(&self.function.config_write(offset, data))
    }

    fn retry_placement(&self) {
        let _ = self.apply(&self.function.retry_placement());
    }

    fn memory_read(&self, gpa: u64, data: &mut [u8]) -> bool {
        self.read(Space::Memory, gpa, data)
    }

    fn memory_write(&self, gpa: u64, data: &[u8]) -> Option<SlotsFreed> {
        self.write(Space::Memory, gpa, data)
    }

    fn io_read(&self, port: u16, data: &mut [u8]) -> bool {
        self.read(Space::Io, port.into(), data)
    }

    fn io_write(&self, port: u16, data: &[u8]) -> Option<SlotsFreed> {
        self.write(Space::Io, port.into(), data)
    }
}

impl GuestFunction {
    /// Wraps `function`: `counts` counts its traps, and `writes` coalesces its writes.
    pub(crate) fn new(
        function: &Arc<PassthroughFunction>,
        writes: Arc<dyn Coalesce>,
        counts: &FunctionCounts,
    ) -> Self {
        Self {
            function: Arc::clone(function),
            accesses: counts.bars(&function.address().to_string()),
            coalesced: CoalescedRange::new(writes),
        }
    }

    /// The wrapped function.
    pub(crate) fn function(&self) -> &PassthroughFunction {
        &self.function
    }

    /// Carries out the effects of a change, except for those on other functions.
    pub(crate) fn apply(&self, effects: &ConfigEffects) -> SlotsFreed {
        self.coalesced.apply(effects);
        SlotsFreed(effects.slots_freed)
    }

    fn decode(&self, space: Space, address: u64) -> Option<(BarIndex, u64)> {
        let (bar, offset) = self.function.decode(space, address)?;
        self.accesses.at(bar.number(), offset);
        Some((bar, offset))
    }

    fn read(&self, space: Space, address: u64, data: &mut [u8]) -> bool {
        let place = self.decode(space, address);
        place.map(|(bar, offset)| self.function.bar_read(bar, offset, data)).is_some()
    }

    fn write(&self, space: Space, address: u64, data: &[u8]) -> Option<SlotsFreed> {
        let (bar, offset) = self.decode(space, address)?;
        let effects = self.function.bar_write(bar, offset, data);
        Some(effects.map_or(SlotsFreed(false), |effects| self.apply(&effects)))
    }
}
