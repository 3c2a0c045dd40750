//! The assigned functions of one VM, and the placement of their BARs.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::DevFn;
use resources::{BarRequest, BarSpace, Layout};
use vfio_passthrough::{Bar, BarIndex, BarKind, PassthroughFunction};

use crate::counters::FunctionCounts;
use crate::error::Error;

/// A function and its place on the guest's bus.
pub(crate) type Placed = (DevFn, Arc<PassthroughFunction>);

/// The assigned functions of one VM, with their places on its bus, in the order in which they came.
/// Copies share them.
#[derive(Clone, Default)]
pub(crate) struct Functions(Arc<Mutex<Vec<Placed>>>);

impl Functions {
    /// Pairs of place and function.
    pub(crate) fn new(functions: Vec<Placed>) -> Self {
        Self(Arc::new(Mutex::new(functions)))
    }

    /// Iterates over the functions of now.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Placed> + use<> {
        self.lock().clone().into_iter()
    }

    /// Adds functions.
    pub(crate) fn add(&self, functions: &[Placed]) {
        self.lock().extend_from_slice(functions);
    }

    /// Removes the functions of a slot.
    pub(crate) fn remove(&self, slot: u8) -> Vec<Arc<PassthroughFunction>> {
        let mut functions = self.lock();
        let (left, stay) = functions.drain(..).partition(|(place, _)| place.slot() == slot);
        *functions = stay;
        let left: Vec<Placed> = left;
        left.into_iter().map(|(_, function)| function).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Placed>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The BARs that need an address.
    pub(crate) fn bars(&self) -> Vec<BarRequest> {
        self.iter().flat_map(|(_, function)| bar_requests(&function)).collect()
    }

    /// Places each BAR, as firmware does. The functions do not decode yet.
    pub(crate) fn place_bars(&self, layout: &Layout) -> Result<(), Error> {
        for (_, function) in self.iter() {
            let name = function.address().to_string();
            for placed in layout.bars.iter().filter(|bar| bar.request.function == name) {
                let index = BarIndex::new(placed.request.index);
                // The function does not decode yet, so placing a BAR has no effects.
                index.map(|index| function.place_bar(index, placed.address)).transpose()?;
            }
        }
        Ok(())
    }

    /// The slots of the guest's bus that have functions.
    pub(crate) fn slots(&self) -> Vec<u8> {
        let slots: BTreeSet<u8> = self.iter().map(|(place, _)| place.slot()).collect();
        slots.into_iter().collect()
    }

    /// The functions' host addresses.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.iter().map(|(_, function)| function.address().to_string()).collect()
    }

    /// The number of interrupt vectors of each function.
    pub(crate) fn vectors(&self) -> impl Iterator<Item = u64> + use<> {
        self.iter().map(|(_, function)| function.vectors().into())
    }

    /// Shuts down all functions: they then do no DMA and signal no interrupts.
    ///
    /// An error does not stop the shutdown of further functions; the first error is returned.
    pub(crate) fn shutdown(&self) -> Result<(), Error> {
        let results: Vec<_> = self.iter().map(|(_, function)| function.shutdown()).collect();
        Ok(results.into_iter().collect::<Result<(), _>>()?)
    }

    /// Adds the functions' counts to `counts`.
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
            // A guest places the ROM itself if it needs it; most guests never do.
            BarKind::Rom => return None,
        };
        let function = function.address().to_string();
        Some(BarRequest { function, index: bar.index.number(), size: bar.size, space })
    };
    function.bars().iter().filter_map(request).collect()
}
