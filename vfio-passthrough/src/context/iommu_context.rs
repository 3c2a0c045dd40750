//! What a VMM opens first: the I/O address space of its guest.

use std::fmt;
use std::fs::File;
use std::sync::Arc;

use super::device::AssignedDevice;
use super::error::Error;
use super::shared::{Membership, SharedGroups};
use crate::address::PciAddress;
use crate::backend::type1::Type1Container;
use crate::counters::VfioCalls;
use crate::dma::DmaSpace;
use crate::host::GroupLink;

/// The I/O address space of a guest's devices, and the groups in it. All groups share one container
/// of the kernel; a group that cannot share it gets another one, with the same mappings (see
/// [`DmaSpace`]).
pub struct IommuContext {
    dma: DmaSpace,
    groups: Arc<SharedGroups>,
}

impl fmt::Debug for IommuContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IommuContext").field("dma", &self.dma).finish_non_exhaustive()
    }
}

impl IommuContext {
    /// Opens `/dev/vfio/vfio` and checks its API version and that it has a type1v2 IOMMU.
    ///
    /// # Errors
    ///
    /// [`Error::Container`].
    pub fn open() -> Result<Self, Error> {
        let calls = Arc::<VfioCalls>::default();
        Ok(Self::new(Type1Container::open(calls.clone())?, calls))
    }

    /// As [`open`](Self::open), by a file of `/dev/vfio/vfio` that somebody else has opened for
    /// reading and writing, so that this process needs no right to open it. A group that cannot
    /// share that container opens another one.
    ///
    /// # Errors
    ///
    /// [`Error::Container`].
    pub fn open_by(container: File) -> Result<Self, Error> {
        let calls = Arc::<VfioCalls>::default();
        Ok(Self::new(Type1Container::passed(container, calls.clone())?, calls))
    }

    fn new(first: Type1Container, calls: Arc<VfioCalls>) -> Self {
        let groups = SharedGroups::new(first, calls);
        let dma = groups.lock().dma().clone();
        Self { dma, groups: Arc::new(groups) }
    }

    /// The memory that the devices reach.
    pub fn dma(&self) -> &DmaSpace {
        &self.dma
    }

    /// Counts of the calls made here and on the devices.
    pub fn calls(&self) -> &Arc<VfioCalls> {
        &self.groups.calls
    }

    /// Links all groups, those attached now and later, with a hypervisor. The links with a former
    /// one end: a guest that reboots into a new VM keeps its devices and their mappings.
    ///
    /// # Errors
    ///
    /// [`Error::Link`]: groups from that one on are linked with no hypervisor.
    pub fn link(&self, link: Arc<dyn GroupLink>) -> Result<(), Error> {
        self.groups.lock().link(link)
    }

    /// Attaches the group of a device, unless it is attached, and opens the device. What is mapped
    /// is mapped for the group too, also if no group was attached before. The kernel resets a
    /// function when it opens it (`vfio_pci_core_enable`), if it can: so the function is as after
    /// power-on.
    ///
    /// # Errors
    ///
    /// See [`Error`]; each names the device and the remedy.
    pub fn open_device(&self, address: PciAddress) -> Result<Arc<AssignedDevice>, Error> {
        self.open_device_of(address, None)
    }

    /// As [`open_device`](Self::open_device), by the file of the device's group (`/dev/vfio/N`, for
    /// reading and writing) that somebody else has opened, so that this process needs no right to
    /// open it. If the group is attached already, that file is closed.
    ///
    /// # Errors
    ///
    /// As there, and [`Error::OtherGroup`].
    pub fn open_device_by(
        &self,
        address: PciAddress,
        group: File,
    ) -> Result<Arc<AssignedDevice>, Error> {
        self.open_device_of(address, Some(group))
    }

    fn open_device_of(
        &self,
        address: PciAddress,
        opened: Option<File>,
    ) -> Result<Arc<AssignedDevice>, Error> {
        self.groups.forget_drivers();
        let sysfs = &self.groups.sysfs;
        let group = sysfs.ready_group(address).map_err(Error::NotReady)?;
        let found = opened.as_ref().map(|file| sysfs.group_of(file));
        if let Some(other) = found.filter(|other| *other != Some(group)) {
            return Err(Error::OtherGroup { address, group, other });
        }
        let membership = Membership::new(&self.groups, address, group, opened)?;
        Ok(Arc::new(AssignedDevice::open(membership, address)?))
    }
}
