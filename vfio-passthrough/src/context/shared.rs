//! The groups that a guest's devices share, and the membership of a device in its group.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::device::Attachment;
use super::drivers::Drivers;
use super::error::Error;
use super::groups::Groups;
use super::options::Found;
use super::vf_token::{VfToken, VfTokenProblem, name};
use crate::address::PciAddress;
use crate::backend::sysfs::Sysfs;
use crate::backend::type1::Type1Container;
use crate::backend::{BusMember, ioctl, retry_while_locked};
use crate::counters::VfioCalls;
use crate::pci::presence::Identity;

/// The groups of a guest. Its devices and its context share them.
pub(super) struct SharedGroups {
    pub calls: Arc<VfioCalls>,
    groups: Mutex<Groups>,
    drivers: Drivers,
}

impl SharedGroups {
    /// Has no group yet. `first` is the container for the first group.
    pub fn new(first: Type1Container, calls: Arc<VfioCalls>) -> Self {
        let groups = Mutex::new(Groups::new(first));
        Self { calls, groups, drivers: Drivers::default() }
    }

    /// Locks the groups.
    pub fn lock(&self) -> MutexGuard<'_, Groups> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A device of a group. The group stays attached while this value lives.
pub(super) struct Membership {
    groups: Arc<SharedGroups>,
    sysfs: Sysfs,
    number: u32,
    /// `None` before the device is opened, and after it is closed.
    device: Option<File>,
}

impl Membership {
    /// Attaches the group of `address`, unless it is already attached.
    pub fn new(
        groups: &Arc<SharedGroups>,
        address: PciAddress,
        mut found: Found,
    ) -> Result<Self, Error> {
        groups.drivers.refresh(&found.sysfs);
        let number = found.sysfs.ready_group(address).map_err(Error::NotReady)?;
        let of_file = found.file.as_ref().map(|file| found.sysfs.group_of(file));
        if let Some(other) = of_file.filter(|other| *other != Some(number)) {
            return Err(Error::OtherGroup { address, group: number, other });
        }
        groups.lock().join(address, number, &mut found, &groups.calls)?;
        Ok(Self { groups: groups.clone(), sysfs: found.sysfs, number, device: None })
    }

    /// Opens the device, without a lock: the kernel resets it.
    pub fn open(&mut self, address: PciAddress, token: Option<VfToken>) -> Result<(), Error> {
        let group = self.groups.lock().file(self.number).cloned();
        let opened = group.ok_or_else(|| io::ErrorKind::NotFound.into()).and_then(|group| {
            let name = name(address, token);
            retry_while_locked(|| ioctl::open_device(&group, &name))
        });
        let refused = |source| refused(&self.sysfs, address, token, source);
        self.device = Some(opened.map_err(refused)?);
        Ok(())
    }
}

impl Attachment for Membership {
    fn device(&self) -> io::Result<&File> {
        self.device.as_ref().ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
    }

    fn recorded(&self, address: PciAddress) -> Option<Identity> {
        self.sysfs.identity(address)
    }

    fn exports(&self) -> bool {
        false
    }

    fn bus_members(&self) -> io::Result<Vec<BusMember>> {
        let drivers = &self.groups.drivers;
        let describe = |(address, group)| {
            let attached = self.groups.lock().file(group).is_some();
            drivers.bus_member(address, attached, &self.sysfs)
        };
        Ok(ioctl::hot_reset_info(self.device()?)?.into_iter().map(describe).collect())
    }

    fn reset_bus(&self) -> io::Result<()> {
        let members = ioctl::hot_reset_info(self.device()?)?;
        // Each group is listed once: the kernel refuses more groups than functions.
        let numbers: BTreeSet<u32> = members.into_iter().map(|(_, group)| group).collect();
        let groups = self.groups.lock();
        let files: Vec<&File> =
            numbers.iter().filter_map(|number| groups.file(*number).map(AsRef::as_ref)).collect();
        ioctl::hot_reset(self.device()?, &files)
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
        // The device is closed before its memory is unmapped, and without the lock: the kernel
        // resets the device, which takes 100 ms, and other devices are closed meanwhile. The kernel
        // keeps the group open until the device is closed.
        drop(self.device.take());
        self.groups.lock().leave(self.number);
    }
}
