//! The legacy interface: a container (`/dev/vfio/vfio`) with a type1v2 IOMMU, groups (`/dev/vfio/N`),
//! devices.
//!
//! vfio-ioctls opens them in the order that the kernel asks for: container, group, status, `SET_CONTAINER`,
//! `SET_IOMMU` once, the KVM link, and only then the device, since some drivers want to know KVM when they
//! are opened.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use vfio_ioctls::{VfioContainer, VfioDevice, VfioDeviceFd, VfioError};

use super::sysfs::{self, Sysfs};
use super::{
    AddressSpace, Device, DeviceFlags, IommuInfo, IrqInfo, RegionInfo, RegionMmap, SetIrqs, file_position,
    ioctl,
};
use crate::address::{ByteRange, PciAddress};
use crate::counters::VfioCalls;

/// Why a container, a group or a device could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `/dev/vfio/vfio` could not be opened.
    #[error("cannot open /dev/vfio/vfio: {0}; {hint}", hint = container_hint(.0))]
    OpenContainer(#[source] io::Error),
    /// The kernel's VFIO is not one that this crate can use.
    #[error(
        "/dev/vfio/vfio: {0}; run 'modprobe vfio_iommu_type1', and use a kernel with CONFIG_VFIO_IOMMU_TYPE1"
    )]
    Unsupported(#[source] VfioError),
    /// The device cannot be assigned as it is.
    #[error(transparent)]
    NotReady(sysfs::Error),
    /// The group is open in another process, or in this one a second time.
    #[error(
        "{address}: IOMMU group {group} is in use (EBUSY): a group can be open once; 'fuser -v /dev/vfio/{group}' names the process that has it"
    )]
    GroupBusy {
        /// The device.
        address: PciAddress,
        /// Its group.
        group: u32,
    },
    /// The group could not be opened.
    #[error("{address}: cannot open /dev/vfio/{group}: {source}; {}", group_hint(source, *group))]
    OpenGroup {
        /// The device.
        address: PciAddress,
        /// Its group.
        group: u32,
        /// Why.
        source: io::Error,
    },
    /// Any other step that vfio-ioctls takes.
    #[error("{address}: cannot attach IOMMU group {group}: {source}")]
    Attach {
        /// The device.
        address: PciAddress,
        /// Its group.
        group: u32,
        /// Which step failed, and why.
        source: VfioError,
    },
    /// The device's own description could not be read.
    #[error("{address}: VFIO_DEVICE_GET_INFO: {source}")]
    DeviceInfo {
        /// The device.
        address: PciAddress,
        /// Why.
        source: io::Error,
    },
}

fn container_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "it is for everybody on most hosts: 'chmod 0666 /dev/vfio/vfio' as root"
        }
        _ => "run 'modprobe vfio-pci' as root",
    }
}

fn group_hint(error: &io::Error, group: u32) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => format!("run 'chown $USER /dev/vfio/{group}' as root"),
        io::ErrorKind::NotFound => format!(
            "without an IOMMU there is only /dev/vfio/noiommu-{group}, which cannot be given to a guest: turn on VT-d or AMD-Vi"
        ),
        _ => "see 'dmesg'".to_owned(),
    }
}

/// A VFIO container, once its groups are attached an I/O address space.
pub struct Container {
    vfio: Arc<VfioContainer>,
    sysfs: Sysfs,
    /// How many devices are open. The kernel drops the IOMMU driver, and every mapping with it, when the last
    /// group leaves.
    devices: Mutex<usize>,
    calls: Arc<VfioCalls>,
}

impl Container {
    /// Opens `/dev/vfio/vfio` and checks its API version and that it has a type1v2 IOMMU.
    ///
    /// `link` is the hypervisor's VFIO device (`KVM_DEV_TYPE_VFIO`); groups are registered with it as they
    /// are attached.
    ///
    /// # Errors
    ///
    /// [`Error::OpenContainer`] (`ENOENT` and `ENODEV`: no module; `EACCES`), [`Error::Unsupported`].
    pub fn open(link: Option<Arc<VfioDeviceFd>>) -> Result<Arc<Self>, Error> {
        let vfio = VfioContainer::new(link).map_err(|error| match error {
            VfioError::OpenContainer(source) => Error::OpenContainer(source),
            other => Error::Unsupported(other),
        })?;
        Ok(Arc::new(Self {
            vfio: Arc::new(vfio),
            sysfs: Sysfs::default(),
            devices: Mutex::new(0),
            calls: Arc::default(),
        }))
    }

    /// The calls made on this container and on its devices.
    pub fn calls(&self) -> &Arc<VfioCalls> {
        &self.calls
    }

    /// Attaches the group of a device, if it is not yet, and opens the device. The kernel resets a function
    /// that can be reset when it is opened (`vfio_pci_core_enable`), so it comes as after power-on.
    ///
    /// # Errors
    ///
    /// See [`Error`]; each names the device and what would mend it.
    pub fn open_device(self: &Arc<Self>, address: PciAddress) -> Result<Arc<GroupDevice>, Error> {
        let group = self.sysfs.ready_group(address).map_err(Error::NotReady)?;
        let path = self.sysfs.device(address);
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        let device = VfioDevice::new(&path, self.vfio.clone(), false);
        let device = device.map_err(|error| self.attach_error(address, group, error))?;
        *devices = devices.saturating_add(1);
        drop(devices);
        let mut opened = GroupDevice {
            vfio: ManuallyDrop::new(device),
            path,
            flags: DeviceFlags::empty(),
            container: self.clone(),
        };
        opened.flags =
            ioctl::device_flags(&*opened.vfio).map_err(|source| Error::DeviceInfo { address, source })?;
        Ok(Arc::new(opened))
    }

    fn attach_error(&self, address: PciAddress, group: u32, error: VfioError) -> Error {
        match error {
            VfioError::GroupViable => Error::NotReady(self.sysfs.not_viable(address, group)),
            VfioError::OpenGroup(source, _) if source.raw_os_error() == Some(libc::EBUSY) => {
                Error::GroupBusy { address, group }
            }
            VfioError::OpenGroup(source, _) => Error::OpenGroup {
                address,
                group,
                source,
            },
            source => Error::Attach {
                address,
                group,
                source,
            },
        }
    }

    fn has_devices(&self) -> bool {
        *self.devices.lock().unwrap_or_else(PoisonError::into_inner) != 0
    }
}

impl AddressSpace for Container {
    fn info(&self) -> io::Result<IommuInfo> {
        self.calls.iommu_info.increment();
        ioctl::iommu_info(&*self.vfio)
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
            Err(_) if !self.has_devices() => Ok(()),
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

/// A device of a container. It holds the container.
pub struct GroupDevice {
    vfio: ManuallyDrop<VfioDevice>,
    path: PathBuf,
    flags: DeviceFlags,
    container: Arc<Container>,
}

impl GroupDevice {
    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the fd belongs to `vfio`, which is dropped in our `drop` only, and the borrow lasts no
        // longer than `self`.
        unsafe { BorrowedFd::borrow_raw(self.vfio.as_raw_fd()) }
    }

    /// The device's file under another fd, for positioned reads and writes.
    fn with_file<T>(&self, action: impl FnOnce(&std::fs::File) -> T) -> T {
        let fd = self.vfio.as_raw_fd();
        // SAFETY: `fd` is open while `self` lives, and `ManuallyDrop` below keeps the File from closing what
        // it does not own.
        let file = ManuallyDrop::new(unsafe { <std::fs::File as std::os::fd::FromRawFd>::from_raw_fd(fd) });
        action(&file)
    }
}

impl Device for GroupDevice {
    fn flags(&self) -> DeviceFlags {
        self.flags
    }

    fn region(&self, index: u32) -> io::Result<RegionInfo> {
        self.container.calls.region_info.increment();
        ioctl::region_info(&self.fd(), index)
    }

    fn irq(&self, index: u32) -> io::Result<IrqInfo> {
        self.container.calls.irq_info.increment();
        ioctl::irq_info(&self.fd(), index)
    }

    fn read(&self, region: &RegionInfo, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let position = file_position(region, offset, data.len())?;
        self.container.calls.region_read.increment();
        self.with_file(|file| file.read_exact_at(data, position))
    }

    fn write(&self, region: &RegionInfo, offset: u64, data: &[u8]) -> io::Result<()> {
        let position = file_position(region, offset, data.len())?;
        self.container.calls.region_write.increment();
        self.with_file(|file| file.write_all_at(data, position))
    }

    fn mmap(self: Arc<Self>, region: &RegionInfo, range: ByteRange) -> io::Result<RegionMmap> {
        let length = usize::try_from(range.size()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        let position = file_position(region, range.start(), length)?;
        self.container.calls.region_mmap.increment();
        RegionMmap::new(
            self.clone(),
            self.fd().as_fd(),
            position,
            range.start(),
            range.size(),
        )
    }

    fn set_irqs(&self, call: SetIrqs<'_>) -> io::Result<()> {
        self.container.calls.set_irqs.increment();
        ioctl::set_irqs(&self.fd(), call)
    }

    fn reset(&self) -> io::Result<()> {
        self.container.calls.reset.increment();
        ioctl::reset(&self.fd())
    }
}

impl Drop for GroupDevice {
    fn drop(&mut self) {
        // vfio-ioctls reads the group from sysfs again when a device is dropped, and panics where it is not
        // there.
        if std::fs::read_link(self.path.join("iommu_group")).is_err() {
            log::error!(
                "{}: the device is gone from sysfs; its files stay open until this process ends",
                self.path.display()
            );
            return;
        }
        let mut devices = self
            .container
            .devices
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // SAFETY: `drop` runs once and nothing uses `vfio` after it.
        unsafe { ManuallyDrop::drop(&mut self.vfio) };
        *devices = devices.saturating_sub(1);
    }
}
