//! The assigned functions of one VM, and the placement of their BARs.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::DevFn;
use resources::{BarRequest, BarSpace, Layout, PlacedBar};
use vfio_passthrough::function::Reset;
use vfio_passthrough::{Bar, BarIndex, BarKind, PassthroughFunction};

use super::side_by_side::side_by_side;
use crate::counters::FunctionCounts;
use crate::error::Error;

/// A function and its place on the guest's bus.
pub(crate) type Placed = (DevFn, Arc<PassthroughFunction>);

/// The assigned functions of one VM, with their places on its bus, in the order in which they came.
/// Clones share them. If the last clone is dropped before they are shut down, it shuts them down.
#[derive(Clone, Default)]
pub(crate) struct Functions(Arc<List>);

#[derive(Default)]
struct List {
    functions: Mutex<Vec<Placed>>,
    /// They are shut down.
    ended: AtomicBool,
}

/// How functions end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The guest reboots: the devices stay open.
    Reboot,
    /// The devices are closed next.
    Close,
}

impl Functions {
    /// Makes a function of each of `sources`. After an error it ends the functions made so far.
    pub(crate) fn make<T>(
        sources: impl IntoIterator<Item = T>,
        make: impl Fn(T) -> Result<Placed, Error>,
    ) -> Result<Self, Error> {
        let own = Self::default();
        for source in sources {
            let placed = make(source)?;
            own.0.lock().push(placed);
        }
        Ok(own)
    }

    /// Iterates over the functions of now.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Placed> + use<> {
        self.0.lock().clone().into_iter()
    }

    /// Takes all functions of `other`, and returns them.
    pub(crate) fn take_from(&self, other: &Self) -> Vec<Placed> {
        let taken = std::mem::take(&mut *other.0.lock());
        self.0.lock().extend_from_slice(&taken);
        taken
    }

    /// Removes the functions of a slot.
    pub(crate) fn remove(&self, slot: u8) -> Vec<Arc<PassthroughFunction>> {
        let mut functions = self.0.lock();
        let is_there = |(place, _): &Placed| place.slot() == slot;
        let left: Vec<_> = functions.iter().filter(|own| is_there(own)).cloned().collect();
        functions.retain(|own| !is_there(own));
        left.into_iter().map(|(_, function)| function).collect()
    }

    /// The BARs that need an address.
    pub(crate) fn bars(&self) -> Vec<BarRequest> {
        self.iter().flat_map(|(_, function)| bar_requests(&function)).collect()
    }

    /// Checks that the BARs of `new` functions have room beside those of these functions, wherever
    /// the guest has put them.
    pub(crate) fn check_room(&self, new: &Self, layout: &Layout) -> Result<(), Error> {
        let (mut bars, mut placed) = (new.bars(), Vec::new());
        for (_, function) in self.iter() {
            for request in bar_requests(&function) {
                let index = BarIndex::new(request.index);
                match index.and_then(|index| function.bar_address(index)) {
                    Some(address) => placed.push(PlacedBar { request, address }),
                    // The guest has not placed it yet.
                    None => bars.push(request),
                }
            }
        }
        Ok(layout.room_for(&bars, &placed)?)
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

    /// Shuts down all functions: they then do no DMA and signal no interrupts. A second call does
    /// nothing.
    ///
    /// An error does not stop the shutdown of further functions; the first error is returned.
    pub(crate) fn shutdown(&self, end: End) -> Result<(), Error> {
        self.0.shutdown(end)
    }

    /// Adds the functions' counts to `counts`.
    pub(crate) fn count(&self, counts: &FunctionCounts) {
        for (_, function) in self.iter() {
            let name = function.address().to_string();
            function.traps().values().for_each(|(what, count)| counts.trapped(&name, what, count));
        }
    }
}

impl List {
    fn lock(&self) -> MutexGuard<'_, Vec<Placed>> {
        self.functions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shuts down the functions side by side. Those that only a reset of their bus resets come
    /// last, and one after another: VFIO refuses the reset of a bus while another function on it
    /// is accessed (`EBUSY`, vfio_pci_dev_set_hot_reset).
    fn shutdown(&self, end: End) -> Result<(), Error> {
        if self.ended.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let shutdown = |function: Arc<PassthroughFunction>| match end {
            End::Reboot => function.shutdown(),
            End::Close => function.shutdown_before_close(),
        };
        let functions = self.lock().clone().into_iter().map(|(_, function)| function);
        let (with_bus, alone): (Vec<_>, Vec<_>) =
            functions.partition(|function| function.reset_kind() == Reset::Bus);
        let mut results = side_by_side(alone, shutdown);
        results.extend(with_bus.into_iter().map(shutdown));
        Ok(results.into_iter().collect::<Result<(), _>>()?)
    }
}

impl Drop for List {
    fn drop(&mut self) {
        if let Err(error) = self.shutdown(End::Close) {
            log::error!("{error}");
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
