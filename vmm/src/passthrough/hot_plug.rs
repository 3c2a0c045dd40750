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
use super::side_by_side::side_by_side;
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
        let check = |new: &Functions| {
            self.functions.check_room(new, &self.layout)?;
            self.assigned.limits().check_files(self.functions.vectors().chain(new.vectors()))
        };
        let added = self.assigned.add(addition, (&self.kvm_host, &self.taken()), check)?;
        let slots = added.slots();
        let added = self.functions.take_from(&added);
        let put = |(place, function): &Placed| {
            put(&self.bus, *place, (self.wrap)(function), &self.changes)
        };
        added.iter().try_for_each(put).inspect_err(|_| self.take(&slots))?;
        self.set_peers();
        self.slots.arrive(slots);
        Ok(added)
    }

    /// The slots with a function, and those whose function was taken before the guest gave it back. A
    /// guest may eject a slot meanwhile, so the order of the last two questions matters.
    fn taken(&self) -> Vec<u8> {
        let has = self.functions.slots();
        let is_taken = |slot: &u8| {
            has.contains(slot) || self.slots.is_taken(*slot) || self.ejections.has(*slot)
        };
        (0..SLOTS).filter(is_taken).collect()
    }

    /// Asks the guest for a device. With `force` the device is closed first, and the guest learns of
    /// it afterwards.
    pub(crate) fn remove(&self, address: PciAddress, force: bool) -> Result<(), Error> {
        let mut functions = self.functions.iter();
        let found = functions.find(|(_, function)| function.address() == address);
        let (place, _) = found.ok_or(Error::NotAssigned { address })?;
        if force {
            self.take(&[place.slot()]);
        }
        self.slots.ask(place.slot());
        Ok(())
    }

    /// Gives the devices of ejected slots back to the host.
    pub(crate) fn finish(&self) {
        let ejected = self.ejections.take();
        if !ejected.is_empty() {
            self.take(&ejected);
        }
    }

    /// The guest ends or reboots, and uses no device: gives those back that the host asked for too.
    pub(crate) fn end(&self) {
        self.finish();
        let asked = self.slots.still_asked();
        if !asked.is_empty() {
            self.take(&asked);
        }
    }

    /// Closes the devices of these slots side by side, because the kernel resets each. An error is
    /// logged: the device is closed in any case.
    fn take(&self, slots: &[u8]) {
        slots.iter().for_each(|slot| self.bus.remove(*slot));
        let functions: Vec<_> =
            slots.iter().flat_map(|slot| self.functions.remove(*slot)).collect();
        for (address, result) in side_by_side(functions, |own| (own.address(), own.detach().1)) {
            result.unwrap_or_else(|error| log::warn!("{error}"));
            self.changes.push(Change::Left(address));
            self.assigned.remove(address);
        }
        self.slots.forget(slots);
        self.set_peers();
        self.bus.retry_placement();
    }

    /// Peer-to-peer mappings come with the second device, and go when only one is left. The BARs of a
    /// device of conventional PCI stay mapped.
    fn set_peers(&self) {
        for (_, function) in self.functions.iter() {
            let peers = self.assigned.peers(function.address(), function.is_conventional());
            function.set_peers(peers).unwrap_or_else(|error| log::warn!("{error}"));
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
