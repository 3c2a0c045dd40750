//! Devices that are bound to iommufd by their character devices (`/dev/vfio/devices/vfioN`), and
//! attached to one IOAS.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::device::Attachment;
use super::drivers::Drivers;
use super::error::{BIND, Error};
use super::linked::Linked;
use super::nodes::open_cdev;
use super::options::Found;
use super::vf_token::{VfToken, VfTokenProblem};
use crate::address::PciAddress;
use crate::backend::iommufd::{Ioas, attach_ioas, bind};
use crate::backend::sysfs::Sysfs;
use crate::backend::{BusMember, ioctl, retry_while_locked};
use crate::host::GroupLink;
use crate::pci::presence::Identity;

/// The IOAS of a guest, and the devices that are attached to it.
pub(super) struct Cdevs {
    ioas: Arc<Ioas>,
    drivers: Drivers,
    links: Mutex<Links>,
}

/// The links of the devices with the hypervisor.
#[derive(Default)]
struct Links {
    link: Option<Arc<dyn GroupLink>>,
    devices: BTreeMap<PciAddress, Device>,
}

struct Device {
    linked: Option<Linked>,
    file: Arc<File>,
}

impl Device {
    fn new(
        address: PciAddress,
        file: Arc<File>,
        link: Option<Arc<dyn GroupLink>>,
    ) -> Result<Self, Error> {
        let linked = link.map(|link| Linked::new(&address.to_string(), link, file.clone()));
        Ok(Self { linked: linked.transpose()?, file })
    }
}

impl Cdevs {
    /// Has no device yet.
    pub fn new(ioas: Arc<Ioas>) -> Self {
        Self { ioas, drivers: Drivers::default(), links: Mutex::default() }
    }

    /// Links all devices with another hypervisor, after it ended their links with the previous one.
    pub fn link(&self, link: Arc<dyn GroupLink>) -> Result<(), Error> {
        let mut links = self.links();
        links.link = Some(link.clone());
        links.devices.values_mut().for_each(|device| device.linked = None);
        links.devices.iter_mut().try_for_each(|(address, device)| {
            *device = Device::new(*address, device.file.clone(), Some(link.clone()))?;
            Ok(())
        })
    }

    fn links(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A device that is bound to iommufd. Dropping it closes the device, which the kernel then detaches
/// and unbinds (vfio_df_unbind_iommufd).
pub(super) struct CdevAttachment {
    cdevs: Arc<Cdevs>,
    sysfs: Sysfs,
    address: PciAddress,
    group: u32,
    file: Arc<File>,
}

impl CdevAttachment {
    /// Opens the node of the device of `address`, and links it.
    pub fn new(cdevs: &Arc<Cdevs>, address: PciAddress, mut found: Found) -> Result<Self, Error> {
        cdevs.drivers.refresh(&found.sysfs);
        let group = found.sysfs.ready_group(address).map_err(Error::NotReady)?;
        let file = Arc::new(open(address, &mut found)?);
        // The link comes first: the kernel reads the VM when it binds (vfio_df_get_kvm_safe).
        cdevs.add(address, group, &file)?;
        Ok(Self { cdevs: cdevs.clone(), sysfs: found.sysfs, address, group, file })
    }

    /// Binds and attaches the device, without a lock: the kernel resets it when it binds.
    pub fn bind(&self, token: Option<VfToken>) -> Result<(), Error> {
        let Self { cdevs, sysfs, address, group, file } = self;
        let uuid = token.map(VfToken::bytes);
        let bound = retry_while_locked(|| bind(file, &cdevs.ioas, uuid.as_ref()));
        bound.map_err(|source| refused(sysfs, (*address, *group), token, source))?;
        let attached = attach_ioas(file, &cdevs.ioas);
        attached.map_err(|source| Error::OpenDevice { address: *address, call: ATTACH, source })
    }
}

const ATTACH: &str = "VFIO_DEVICE_ATTACH_IOMMUFD_PT";

/// The device's file: the passed one, if it is that of the device, or the node.
fn open(address: PciAddress, found: &mut Found) -> Result<File, Error> {
    let path = found.sysfs.cdev(address).ok_or(Error::NoCdev { address })?;
    let passed = found.file.as_ref();
    if passed.is_some_and(|file| !found.sysfs.is_cdev_of(file, address)) {
        return Err(Error::OtherCdev { address, path });
    }
    found.open((address, path), |path| open_cdev(address, path))
}

impl Cdevs {
    /// Adds a device, and links it with the hypervisor.
    fn add(&self, address: PciAddress, group: u32, file: &Arc<File>) -> Result<(), Error> {
        let mut links = self.links();
        if links.devices.contains_key(&address) {
            return Err(Error::DeviceBusy { address, group });
        }
        let device = Device::new(address, file.clone(), links.link.clone())?;
        links.devices.insert(address, device);
        Ok(())
    }
}

/// The error of a device that the kernel does not bind. It names who has the group, if the group
/// is in use.
fn refused(
    sysfs: &Sysfs,
    (address, group): (PciAddress, u32),
    token: Option<VfToken>,
    source: io::Error,
) -> Error {
    match (source.raw_os_error(), token) {
        // EPERM: a driver of the host, or another iommufd, has the group
        // (iommu_device_claim_dma_owner).
        (Some(libc::EPERM), _) if !sysfs.offenders(group).is_empty() => {
            Error::NotReady(sysfs.not_viable(address, group))
        }
        // EBUSY: the group is open (vfio_device_block_group). EINVAL: another file of the device
        // is bound (vfio_df_open).
        (Some(libc::EBUSY), _) | (Some(libc::EINVAL), None) => Error::DeviceBusy { address, group },
        (Some(libc::EINVAL), Some(_)) => {
            let physical = sysfs.physical_function(address);
            Error::VfToken { address, physical, problem: VfTokenProblem::NotByIommufd }
        }
        (_, token) => match VfTokenProblem::of(&source, token) {
            Some(problem) => {
                let physical = sysfs.physical_function(address);
                Error::VfToken { address, physical, problem }
            }
            None => Error::OpenDevice { address, call: BIND, source },
        },
    }
}

impl Attachment for CdevAttachment {
    fn device(&self) -> io::Result<&File> {
        Ok(&self.file)
    }

    fn recorded(&self, address: PciAddress) -> Option<Identity> {
        self.sysfs.identity(address)
    }

    fn exports(&self) -> bool {
        true
    }

    fn bus_members(&self) -> io::Result<Vec<BusMember>> {
        let (sysfs, drivers) = (&self.sysfs, &self.cdevs.drivers);
        // All-ones: another iommufd, or nobody, owns the function.
        let describe = |(address, id)| drivers.bus_member(address, id != u32::MAX, sysfs);
        Ok(ioctl::hot_reset_info(&self.file)?.into_iter().map(describe).collect())
    }

    fn reset_bus(&self) -> io::Result<()> {
        // Without groups the kernel checks that one iommufd owns all functions
        // (vfio_pci_ioctl_pci_hot_reset).
        ioctl::hot_reset(&self.file, &[])
    }
}

impl Drop for CdevAttachment {
    fn drop(&mut self) {
        // The link ends first; both hold the file, which is closed after it.
        let device = self.cdevs.links().devices.remove(&self.address);
        drop(device);
    }
}
