//! The drivers of the functions that a reset of a bus resets.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::address::PciAddress;
use crate::backend::BusMember;
use crate::backend::sysfs::Sysfs;

/// The drivers of the functions that a reset of a bus resets, since the first query. A VMM that has
/// dropped its right to open files can then still query them.
#[derive(Default)]
pub(super) struct Drivers(Mutex<BTreeMap<PciAddress, Driver>>);

/// The driver of a function.
#[derive(Clone)]
struct Driver {
    name: Option<String>,
    is_vfio: bool,
}

impl Driver {
    fn of(address: PciAddress, sysfs: &Sysfs) -> Self {
        Self { name: sysfs.driver(address), is_vfio: sysfs.is_vfio(address) }
    }
}

impl Drivers {
    /// Makes the next query read the drivers again: a function can have another driver now. Those of
    /// a copy of sysfs are taken over, and others stay: they cannot be read.
    pub fn refresh(&self, sysfs: &Sysfs) {
        let mut drivers = self.lock();
        match sysfs.copied() {
            None => drivers.clear(),
            Some(devices) => {
                drivers.extend(devices.into_iter().map(|own| (own, Driver::of(own, sysfs))));
            }
        }
    }

    /// Describes a function that a reset of a bus resets. `attached`: no other process can open it.
    pub fn bus_member(&self, address: PciAddress, attached: bool, sysfs: &Sysfs) -> BusMember {
        let read = || Driver::of(address, sysfs);
        let driver = self.lock().entry(address).or_insert_with(read).clone();
        // The kernel does not reset a bus if a function on it has another driver or no driver
        // (vfio_pci_dev_set_resettable).
        BusMember { address, ours: attached && driver.is_vfio, driver: driver.name }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PciAddress, Driver>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
