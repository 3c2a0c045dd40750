//! The legacy interface: a container (`/dev/vfio/vfio`) with a type1v2 IOMMU, groups
//! (`/dev/vfio/N`), devices.
//!
//! vfio-ioctls opens the container, checks it, and maps memory. Groups and devices are opened here,
//! in the order that the kernel asks for: group, status, `SET_CONTAINER`, `SET_IOMMU` once a
//! container, what is mapped already, the link to the hypervisor, and only then the device, since
//! some drivers want to know KVM when they are opened. A hot reset needs the files of groups, which
//! vfio-ioctls keeps to itself.

mod device;
mod error;
mod membership;
mod spaces;
mod type1;

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use device::GroupDevice;
pub use error::Error;
use membership::{Groups, Membership};
use type1::Type1;

use super::BusMember;
use super::sysfs::{self, Sysfs};
use crate::address::PciAddress;
use crate::counters::VfioCalls;
use crate::dma::DmaSpace;
use crate::host::GroupLink;

/// The VFIO container of a guest's devices. A group that cannot share it gets another one from the
/// kernel, which is kept in step (see [`DmaSpace`]).
pub struct Container {
    sysfs: Sysfs,
    dma: DmaSpace,
    groups: Mutex<Groups>,
    calls: Arc<VfioCalls>,
    /// Who has the functions that a reset of a bus would reach, as it was when that was first
    /// asked: a VMM that may open no file any more can ask again.
    drivers: Mutex<BTreeMap<PciAddress, Driver>>,
}

/// Who has a function.
#[derive(Clone)]
struct Driver {
    name: Option<String>,
    is_vfio: bool,
}

impl Container {
    /// Opens `/dev/vfio/vfio` and checks its API version and that it has a type1v2 IOMMU.
    ///
    /// # Errors
    ///
    /// [`Error::OpenContainer`] (`ENOENT` and `ENODEV`: no module; `EACCES`),
    /// [`Error::Unsupported`].
    pub fn open() -> Result<Arc<Self>, Error> {
        let calls = Arc::<VfioCalls>::default();
        let groups = Groups::new(Type1::open(calls.clone())?);
        Ok(Arc::new(Self {
            sysfs: Sysfs::default(),
            dma: groups.dma().clone(),
            groups: Mutex::new(groups),
            calls,
            drivers: Mutex::default(),
        }))
    }

    /// What the devices reach.
    pub fn dma(&self) -> &DmaSpace {
        &self.dma
    }

    /// The calls made on this container and on its devices.
    pub fn calls(&self) -> &Arc<VfioCalls> {
        &self.calls
    }

    /// Tells a hypervisor of all groups that are attached now and later. A former one is told that
    /// they are gone: so a guest that reboots into a new VM keeps its devices and their mappings.
    ///
    /// # Errors
    ///
    /// [`Error::Link`]: groups from that one on are linked to no hypervisor.
    pub fn link(&self, link: Arc<dyn GroupLink>) -> Result<(), Error> {
        self.groups().link(link)
    }

    /// Attaches the group of a device, if it is not yet, and opens the device. All that is mapped
    /// is mapped for it, too, also where no device was open before. The kernel resets a function
    /// that can be reset when it is opened (`vfio_pci_core_enable`), so it comes as after power-on.
    ///
    /// # Errors
    ///
    /// See [`Error`]; each names the device and what would mend it.
    pub fn open_device(self: &Arc<Self>, address: PciAddress) -> Result<Arc<GroupDevice>, Error> {
        self.open_device_of(address, None)
    }

    /// As [`open_device`](Self::open_device), by the file of its group (`/dev/vfio/N`, for reading
    /// and writing) that somebody else has opened, so that this process needs no right to open it.
    /// Where the group is attached already, that file is closed.
    ///
    /// # Errors
    ///
    /// As there, and [`Error::OtherGroup`].
    pub fn open_device_by(
        self: &Arc<Self>,
        address: PciAddress,
        group: File,
    ) -> Result<Arc<GroupDevice>, Error> {
        self.open_device_of(address, Some(group))
    }

    fn open_device_of(
        self: &Arc<Self>,
        address: PciAddress,
        opened: Option<File>,
    ) -> Result<Arc<GroupDevice>, Error> {
        // What was bound to another driver meanwhile is asked for anew.
        self.drivers().clear();
        let group = self.sysfs.ready_group(address).map_err(Error::NotReady)?;
        let is_of = opened.as_ref().map(|file| self.sysfs.group_of(file));
        if let Some(other) = is_of.filter(|other| *other != Some(group)) {
            return Err(Error::OtherGroup { address, group, other });
        }
        let membership = Membership::new(self, address, group, opened)?;
        Ok(Arc::new(GroupDevice::open(membership, address)?))
    }

    /// What a reset of a bus would reach.
    fn bus_member(&self, address: PciAddress, group: u32) -> BusMember {
        let driver = self.driver(address);
        BusMember {
            address,
            // The kernel resets nothing that a driver of its own, or none, has
            // (vfio_pci_dev_set_resettable).
            ours: self.groups().file(group).is_some() && driver.is_vfio,
            driver: driver.name,
        }
    }

    fn driver(&self, address: PciAddress) -> Driver {
        let mut drivers = self.drivers();
        let asked =
            || Driver { name: self.sysfs.driver(address), is_vfio: self.sysfs.is_vfio(address) };
        drivers.entry(address).or_insert_with(asked).clone()
    }

    fn drivers(&self) -> MutexGuard<'_, BTreeMap<PciAddress, Driver>> {
        self.drivers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn groups(&self) -> MutexGuard<'_, Groups> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
