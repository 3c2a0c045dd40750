//! Devices that come and go while a guest runs.
//!
//! The thread of the control socket does all of it. It holds the guest's life meanwhile, so that a
//! reboot or the end waits until a step is complete.

use std::sync::Arc;

use devices::{DevFn, PciRoot, SLOTS};
use resources::Layout;
use vfio_passthrough::kvm::KvmHost;
use vfio_passthrough::{PassthroughFunction, PciAddress};

use super::addition::Addition;
use super::assigned::Assigned;
use super::events::{Change, Changes};
use super::function::GuestFunction;
use super::functions::{Functions, Placed};
use super::slots::{Ejections, Slots};
use crate::error::Error;

/// Makes the bus's view of a function.
type Wrap = dyn Fn(&Arc<PassthroughFunction>) -> GuestFunction + Send + Sync;

/// The bus of a guest's life, with what a function on it needs.
pub(crate) struct HotPlug {
    pub(crate) bus: Arc<PciRoot>,
    pub(crate) kvm_host: Arc<KvmHost>,
    /// The guest's windows for BARs.
    pub(crate) layout: Layout,
    pub(crate) functions: Functions,
    pub(crate) changes: Arc<Changes>,
    pub(crate) assigned: Arc<Assigned>,
    pub(crate) wrap: Box<Wrap>,
    pub(crate) slots: Arc<Slots>,
    pub(crate) ejections: Arc<Ejections>,
}

impl HotPlug {
    /// Adds devices, all or none, and reports them to the guest.
    pub(crate) fn add(&self, addition: Addition) -> Result<Vec<Placed>, Error> {
        self.finish();
        let taken: Vec<u8> = (0..SLOTS).filter(|slot| self.is_taken(*slot)).collect();
        let check = |new: &Functions| {
            self.functions.check_room(new, &self.layout)?;
            self.assigned.limits().check_files(self.functions.vectors().chain(new.vectors()))
        };
        let added = self.assigned.add(addition, (&self.kvm_host, &taken), check)?;
        for (place, function) in added.iter() {
            put(&self.bus, place, (self.wrap)(&function), &self.changes)?;
        }
        let added = self.functions.take_from(&added);
        self.set_peers();
        self.slots.arrive(added.iter().map(|(place, _)| place.slot()));
        Ok(added)
    }

    /// Whether a slot has devices, or had some that the host does not have yet. The guest may eject it
    /// meanwhile, so the order of the two questions matters.
    fn is_taken(&self, slot: u8) -> bool {
        self.slots.is_taken(slot) || self.ejections.has(slot)
    }

    /// Asks the guest for a device. With `force` the device is closed first, and the guest learns of
    /// it afterwards.
    pub(crate) fn remove(&self, address: PciAddress, force: bool) -> Result<(), Error> {
        let mut functions = self.functions.iter();
        let found = functions.find(|(_, function)| function.address() == address);
        let (place, _) = found.ok_or(Error::NotAssigned { address })?;
        if force {
            self.take(place.slot());
        }
        self.slots.ask(place.slot());
        Ok(())
    }

    /// Gives the devices of ejected slots back to the host.
    pub(crate) fn finish(&self) {
        self.ejections.take().into_iter().for_each(|slot| self.take(slot));
    }

    /// The guest ends or reboots, and uses no device: gives those back that the host asked for too.
    pub(crate) fn end(&self) {
        self.finish();
        self.slots.still_asked().into_iter().for_each(|slot| self.take(slot));
    }

    /// Closes the devices of a slot. An error is logged: the device is closed in any case.
    fn take(&self, slot: u8) {
        self.bus.remove(slot);
        for function in self.functions.remove(slot) {
            let (_, result) = function.detach();
            result.unwrap_or_else(|error| log::warn!("{error}"));
            self.changes.push(Change::Left(function.address()));
            self.assigned.remove(function.address());
        }
        self.slots.forget(slot);
        self.set_peers();
        self.bus.retry_placement();
    }

    /// Peer-to-peer mappings come with the second device, and go when only one is left.
    fn set_peers(&self) {
        for (_, function) in self.functions.iter() {
            let set = function.set_peers(self.assigned.peers(function.address()));
            set.unwrap_or_else(|error| log::warn!("{error}"));
        }
    }
}

/// Puts a function on the bus, and reports it to the main loop.
pub(crate) fn put(
    bus: &PciRoot,
    place: DevFn,
    function: GuestFunction,
    changes: &Changes,
) -> Result<(), Error> {
    let function = Arc::new(function);
    bus.insert(place, function.clone())?;
    changes.push(Change::Came(place, function));
    Ok(())
}
