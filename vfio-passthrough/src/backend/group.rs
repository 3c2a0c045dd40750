//! The legacy interface: a container (`/dev/vfio/vfio`) with a type1v2 IOMMU, groups (`/dev/vfio/N`),
//! devices.
//!
//! vfio-ioctls opens the container, checks it, and maps memory. Groups and devices are opened here, in the
//! order that the kernel asks for: group, status, `SET_CONTAINER`, `SET_IOMMU` once a container, the link to
//! the hypervisor, and only then the device, since some drivers want to know KVM when they are opened. A hot
//! reset needs the files of groups, which vfio-ioctls keeps to itself.

mod device;
mod error;
mod membership;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vfio_ioctls::{VfioContainer, VfioError};

pub use device::GroupDevice;
pub use error::Error;
use membership::{Groups, Membership};

use super::sysfs::{self, Sysfs};
use super::{AddressSpace, BusMember, IommuInfo, ioctl};
use crate::address::PciAddress;
use crate::counters::VfioCalls;
use crate::host::GroupLink;

/// A VFIO container, once its groups are attached an I/O address space.
pub struct Container {
    vfio: VfioContainer,
    sysfs: Sysfs,
    groups: Mutex<Groups>,
    calls: Arc<VfioCalls>,
}

impl Container {
    /// Opens `/dev/vfio/vfio` and checks its API version and that it has a type1v2 IOMMU.
    ///
    /// # Errors
    ///
    /// [`Error::OpenContainer`] (`ENOENT` and `ENODEV`: no module; `EACCES`), [`Error::Unsupported`].
    pub fn open() -> Result<Arc<Self>, Error> {
        let vfio = VfioContainer::new(None).map_err(|error| match error {
            VfioError::OpenContainer(source) => Error::OpenContainer(source),
            other => Error::Unsupported(other),
        })?;
        Ok(Arc::new(Self {
            vfio,
            sysfs: Sysfs::default(),
            groups: Mutex::default(),
            calls: Arc::default(),
        }))
    }

    /// The calls made on this container and on its devices.
    pub fn calls(&self) -> &Arc<VfioCalls> {
        &self.calls
    }

    /// Tells a hypervisor of all groups that are attached now and later. A former one is told that they are
    /// gone: so a guest that reboots into a new VM keeps its devices and their mappings.
    ///
    /// # Errors
    ///
    /// [`Error::Link`]: groups from that one on are linked to no hypervisor.
    pub fn link(&self, link: Arc<dyn GroupLink>) -> Result<(), Error> {
        self.groups().link(link)
    }

    /// Attaches the group of a device, if it is not yet, and opens the device. The kernel resets a function
    /// that can be reset when it is opened (`vfio_pci_core_enable`), so it comes as after power-on.
    ///
    /// # Errors
    ///
    /// See [`Error`]; each names the device and what would mend it.
    pub fn open_device(self: &Arc<Self>, address: PciAddress) -> Result<Arc<GroupDevice>, Error> {
        let number = self.sysfs.ready_group(address).map_err(Error::NotReady)?;
        let membership = Membership::new(self, address, number)?;
        Ok(Arc::new(GroupDevice::open(membership, address)?))
    }

    /// What a reset of a bus would reach.
    fn bus_member(&self, address: PciAddress, group: u32) -> BusMember {
        BusMember {
            address,
            ours: self.groups().file(group).is_some(),
            driver: self.sysfs.driver(address),
        }
    }

    fn groups(&self) -> MutexGuard<'_, Groups> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AddressSpace for Container {
    fn info(&self) -> io::Result<IommuInfo> {
        self.calls.iommu_info.increment();
        ioctl::iommu_info(&self.vfio)
    }

    unsafe fn map(&self, iova: u64, size: u64, host: *mut u8) -> io::Result<()> {
        let size = usize::try_from(size).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        self.calls.map_dma.increment();
        // SAFETY: our caller promises for the memory what vfio-ioctls asks for: see `AddressSpace::map` and
        // `HostMemory`.
        unsafe { self.vfio.vfio_dma_map(iova, size, host) }.map_err(errno)
    }

    fn unmap(&self, iova: u64, size: u64) -> io::Result<()> {
        let size = usize::try_from(size).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        self.calls.unmap_dma.increment();
        match self.vfio.vfio_dma_unmap(iova, size).map_err(errno) {
            // The kernel unmapped everything when the last group left (vfio_group_detach_container).
            Err(_) if self.groups().is_empty() => Ok(()),
            result => result,
        }
    }
}

/// The errno in an error of vfio-ioctls; where it kept none, `EINVAL`, which is what a size that does not
/// match means.
fn errno(error: VfioError) -> io::Error {
    match error {
        VfioError::IommuDmaMap(source) | VfioError::IommuDmaUnmap(source) => source.into(),
        _ => io::Error::from_raw_os_error(libc::EINVAL),
    }
}
