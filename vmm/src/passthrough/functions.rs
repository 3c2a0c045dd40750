//! The assigned functions of one VM, and the places of their BARs.

use std::sync::Arc;

use resources::{BarRequest, BarSpace, Layout};
use vfio_passthrough::{Bar, BarIndex, BarKind, PassthroughFunction};

use crate::counters::FunctionCounts;
use crate::error::Error;

/// The assigned functions of one VM, with their slots on its bus, in the order of the command line.
#[derive(Clone, Default)]
pub(crate) struct Functions(Vec<(u8, Arc<PassthroughFunction>)>);

impl Functions {
    /// Each of `functions` with its slot.
    pub(crate) fn new(functions: Vec<(u8, Arc<PassthroughFunction>)>) -> Self {
        Self(functions)
    }

    /// Each with its slot.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &(u8, Arc<PassthroughFunction>)> {
        self.0.iter()
    }

    /// The BARs that need a place.
    pub(crate) fn bars(&self) -> Vec<BarRequest> {
        self.iter().flat_map(|(_, function)| bar_requests(function)).collect()
    }

    /// Places each BAR, as firmware does: nothing is decoded yet.
    pub(crate) fn place_bars(&self, layout: &Layout) -> Result<(), Error> {
        for (_, function) in self.iter() {
            let name = function.address().to_string();
            for placed in layout.bars.iter().filter(|bar| bar.request.function == name) {
                let index = BarIndex::new(placed.request.index);
                // The function decodes nothing yet: there are no effects to carry out.
                index.map(|index| function.place_bar(index, placed.address)).transpose()?;
            }
        }
        Ok(())
    }

    /// Their addresses in the host.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.iter().map(|(_, function)| function.address().to_string()).collect()
    }

    /// Takes the devices from the guest: after this they do no DMA and signal no interrupt.
    ///
    /// All are taken, whatever fails; the first failure is reported.
    pub(crate) fn shutdown(&self) -> Result<(), Error> {
        let results: Vec<_> = self.iter().map(|(_, function)| function.shutdown()).collect();
        Ok(results.into_iter().collect::<Result<(), _>>()?)
    }

    /// Adds what was counted to `counts`.
    pub(crate) fn count(&self, counts: &FunctionCounts) {
        for (_, function) in self.iter() {
            let name = function.address().to_string();
            function.traps().values().for_each(|(what, count)| counts.trapped(&name, what, count));
        }
    }
}

fn bar_requests(function: &PassthroughFunction) -> Vec<BarRequest> {
    let request = |bar: &Bar| {
        let space = match bar.kind {
            BarKind::Io => BarSpace::Io,
            BarKind::Memory32 => BarSpace::Memory32,
            BarKind::Memory64 => BarSpace::Memory64,
            // The guest places it if it wants it: most never do.
            BarKind::Rom => return None,
        };
        let function = function.address().to_string();
        Some(BarRequest { function, index: bar.index.number(), size: bar.size, space })
    };
    function.bars().iter().filter_map(request).collect()
}
