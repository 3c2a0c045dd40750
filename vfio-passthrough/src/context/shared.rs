//! The groups that a guest's devices share, and the membership of a device in its group.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::Error;
use super::groups::Groups;
use super::options::DeviceOptions;
use super::vf_token::{VfToken, VfTokenProblem, name};
use crate::address::PciAddress;
use crate::backend::sysfs::Sysfs;
use crate::backend::type1::Type1Container;
use crate::backend::{BusMember, ioctl, retry_while_locked};
use crate::counters::VfioCalls;

/// The groups of a guest. Its devices and its context share them.
pub(super) struct SharedGroups {
    pub sysfs: Sysfs,
    pub calls: Arc<VfioCalls>,
    groups: Mutex<Groups>,
    /// The drivers of the functions that a reset of a bus resets, since the first query. A VMM that
    /// has dropped its right to open files can then still query them.
    drivers: Mutex<BTreeMap<PciAddress, Driver>>,
}

/// The driver of a function.
#[derive(Clone)]
struct Driver {
    name: Option<String>,
    is_vfio: bool,
}

impl SharedGroups {
    /// Has no group yet. `first` is the container for the first group.
    pub fn new(first: Type1Container, calls: Arc<VfioCalls>) -> Self {
        let groups = Mutex::new(Groups::new(first));
        Self { sysfs: Sysfs::default(), calls, groups, drivers: Mutex::default() }
    }

    /// Locks the groups.
    pub fn lock(&self) -> MutexGuard<'_, Groups> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the next query read the drivers again: a function can have another driver now.
    pub fn forget_drivers(&self) {
        self.drivers().clear();
    }

    /// Describes a function that a reset of a bus resets.
    pub fn bus_member(&self, address: PciAddress, group: u32) -> BusMember {
        let driver = self.driver(address);
        // The kernel does not reset a bus if a function on it has another driver or no driver
        // (vfio_pci_dev_set_resettable).
        let ours = self.lock().file(group).is_some() && driver.is_vfio;
        BusMember { address, ours, driver: driver.name }
    }

    fn driver(&self, address: PciAddress) -> Driver {
        let read =
            || Driver { name: self.sysfs.driver(address), is_vfio: self.sysfs.is_vfio(address) };
        self.drivers().entry(address).or_insert_with(read).clone()
    }

    fn drivers(&self) -> MutexGuard<'_, BTreeMap<PciAddress, Driver>> {
        self.drivers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A device of a group. The group stays attached while this value lives.
pub(super) struct Membership {
    groups: Arc<SharedGroups>,
    number: u32,
    /// `None` before the device is opened, and after it is closed.
    device: Option<File>,
}

impl Membership {
    /// Attaches the group of `address`, unless it is already attached, and opens the device.
    pub fn new(
        groups: &Arc<SharedGroups>,
        address: PciAddress,
        number: u32,
        options: DeviceOptions,
    ) -> Result<Self, Error> {
        let mut locked = groups.lock();
        locked.join(address, number, options.group, (&groups.sysfs, &groups.calls))?;
        let group = locked.file(number).cloned();
        drop(locked);
        let mut own = Self { groups: groups.clone(), number, device: None };
        let opened = group.ok_or_else(|| io::ErrorKind::NotFound.into()).and_then(|group| {
            let name = name(address, options.vf_token);
            retry_while_locked(|| ioctl::open_device(&group, &name))
        });
        let refused = |source| refused(&groups.sysfs, address, options.vf_token, source);
        own.device = Some(opened.map_err(refused)?);
        Ok(own)
    }

    /// All groups of the guest.
    pub fn groups(&self) -> &SharedGroups {
        &self.groups
    }

    /// The device.
    pub fn device(&self) -> io::Result<&File> {
        self.device.as_ref().ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
    }
}

/// The error of a device that the kernel does not open.
fn refused(sysfs: &Sysfs, address: PciAddress, token: Option<VfToken>, source: io::Error) -> Error {
    match VfTokenProblem::of(&source, token) {
        Some(problem) => {
            let physical = sysfs.physical_function(address);
            Error::VfToken { address, physical, problem }
        }
        None => Error::OpenDevice { address, call: "VFIO_GROUP_GET_DEVICE_FD", source },
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let device = self.device.take();
        self.groups.lock().leave(self.number, device);
    }
}
