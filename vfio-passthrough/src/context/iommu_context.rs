//! The I/O address space of a guest. A VMM opens it first.

use std::fmt;
use std::fs::File;
use std::sync::Arc;

use super::bridges::{Behind, Bridges};
use super::cdevs::{CdevAttachment, Cdevs};
use super::device::AssignedDevice;
use super::error::Error;
use super::options::{DeviceOptions, Found};
use super::prepared::{Prepared, PreparedDevice};
use super::shared::{Membership, SharedGroups};
use crate::address::PciAddress;
use crate::backend::iommufd::Ioas;
use crate::backend::type1::Type1Container;
use crate::counters::VfioCalls;
use crate::dma::DmaSpace;
use crate::host::GroupLink;

/// The I/O address space of a guest's devices.
///
/// With type1 its groups share one container of the kernel. A group that cannot share it gets
/// another container, with the same mappings (see [`DmaSpace`]). With iommufd its devices share one
/// IOAS.
pub struct IommuContext {
    dma: DmaSpace,
    calls: Arc<VfioCalls>,
    bridges: Arc<Bridges>,
    interface: Interface,
}

/// The kernel's interface for devices and I/O address spaces.
enum Interface {
    /// Groups and containers: `/dev/vfio/vfio`, `/dev/vfio/N`.
    Type1(Arc<SharedGroups>),
    /// iommufd and character devices: `/dev/iommu`, `/dev/vfio/devices/vfioN`.
    Iommufd(Arc<Cdevs>),
}

impl fmt::Debug for IommuContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IommuContext").field("dma", &self.dma).finish_non_exhaustive()
    }
}

impl IommuContext {
    /// Opens `/dev/vfio/vfio`, and checks its API version and that it has a type1v2 IOMMU.
    ///
    /// # Errors
    ///
    /// [`Error::Container`].
    pub fn open() -> Result<Self, Error> {
        let calls = Arc::<VfioCalls>::default();
        Ok(Self::new(Type1Container::open(calls.clone())?, calls))
    }

    /// Does the same as [`open`](Self::open), but takes a file of `/dev/vfio/vfio` that is open for
    /// reading and writing: this process then needs no permission to open it. For a group that
    /// cannot share that container it opens another one.
    ///
    /// # Errors
    ///
    /// [`Error::Container`].
    pub fn open_by(container: File) -> Result<Self, Error> {
        let calls = Arc::<VfioCalls>::default();
        Ok(Self::new(Type1Container::passed(container, calls.clone())?, calls))
    }

    /// Opens `/dev/iommu`, and allocates an IOAS. Devices are then opened by their own nodes
    /// (`/dev/vfio/devices/vfioN`), which the kernel has with `CONFIG_VFIO_DEVICE_CDEV`.
    ///
    /// # Errors
    ///
    /// [`Error::Iommufd`].
    pub fn open_iommufd() -> Result<Self, Error> {
        let calls = Arc::<VfioCalls>::default();
        Ok(Self::with_ioas(Ioas::open(calls.clone())?, calls))
    }

    /// Does the same as [`open_iommufd`](Self::open_iommufd), but takes a file of `/dev/iommu` that
    /// is open for reading and writing.
    ///
    /// # Errors
    ///
    /// [`Error::Iommufd`].
    pub fn open_iommufd_by(iommufd: File) -> Result<Self, Error> {
        let calls = Arc::<VfioCalls>::default();
        Ok(Self::with_ioas(Ioas::passed(iommufd, calls.clone())?, calls))
    }

    fn new(first: Type1Container, calls: Arc<VfioCalls>) -> Self {
        let groups = SharedGroups::new(first, calls.clone());
        let dma = groups.lock().dma().clone();
        Self::of(dma, calls, Interface::Type1(Arc::new(groups)))
    }

    fn with_ioas(ioas: Ioas, calls: Arc<VfioCalls>) -> Self {
        let ioas = Arc::new(ioas);
        let cdevs = Cdevs::new(ioas.clone());
        Self::of(DmaSpace::new(ioas), calls, Interface::Iommufd(Arc::new(cdevs)))
    }

    fn of(dma: DmaSpace, calls: Arc<VfioCalls>, interface: Interface) -> Self {
        Self { dma, calls, bridges: Arc::default(), interface }
    }

    /// Whether devices are used by iommufd; otherwise by type1.
    pub fn is_iommufd(&self) -> bool {
        matches!(self.interface, Interface::Iommufd(_))
    }

    /// The memory that the devices can access.
    pub fn dma(&self) -> &DmaSpace {
        &self.dma
    }

    /// Counts of the calls to the kernel, of the context and of its devices.
    pub fn calls(&self) -> &Arc<VfioCalls> {
        &self.calls
    }

    /// Links all groups with a hypervisor: those that are attached now, and those that are attached
    /// later. The links with the previous one end: a guest that reboots into a new VM keeps its
    /// devices and their mappings.
    ///
    /// # Errors
    ///
    /// [`Error::Link`]: this group and the groups with higher numbers are not linked.
    pub fn link(&self, link: Arc<dyn GroupLink>) -> Result<(), Error> {
        match &self.interface {
            Interface::Type1(groups) => groups.lock().link(link),
            Interface::Iommufd(cdevs) => cdevs.link(link),
        }
    }

    /// Attaches the group of a device, unless it is already attached, and opens the device. All
    /// existing mappings are mapped for the group too, even if no group was attached before. When
    /// the device is opened the kernel resets the function if it can (`vfio_pci_core_enable`), so
    /// that the function has its power-on state.
    ///
    /// The reset takes 100 ms. A VMM with several devices opens them side by side: see
    /// [`prepare_device`](Self::prepare_device).
    ///
    /// # Errors
    ///
    /// See [`Error`]; each variant names the device or its group.
    pub fn open_device(&self, address: PciAddress) -> Result<Arc<AssignedDevice>, Error> {
        self.open_device_with(address, DeviceOptions::default())
    }

    /// Does the same as [`open_device`](Self::open_device), with options.
    ///
    /// # Errors
    ///
    /// The errors of `open_device`, [`Error::OtherGroup`] and [`Error::VfToken`].
    pub fn open_device_with(
        &self,
        address: PciAddress,
        options: DeviceOptions,
    ) -> Result<Arc<AssignedDevice>, Error> {
        self.prepare_device(address, options)?.open()
    }

    /// Does the first, quick part of [`open_device`](Self::open_device): with type1 it attaches the
    /// group, with iommufd it opens the device's node. [`PreparedDevice::open`] does the rest, in
    /// which the kernel resets the device. So a VMM prepares its devices one after another, and
    /// then opens each in a thread of its own.
    ///
    /// With type1 the ranges that the IOMMU can map are known when the last device is prepared, and
    /// memory can be mapped while the devices are opened. With iommufd that comes after the opening
    /// of the last device.
    ///
    /// # Errors
    ///
    /// See [`Error`]; each variant names the device or its group.
    pub fn prepare_device(
        &self,
        address: PciAddress,
        options: DeviceOptions,
    ) -> Result<PreparedDevice, Error> {
        let DeviceOptions { file, vf_token, sysfs } = options;
        let found = Found::new(file, sysfs);
        let behind = Behind::new(&self.bridges, found.sysfs.upstream_bridge(address));
        let attachment = match &self.interface {
            Interface::Type1(groups) => Prepared::Type1(Membership::new(groups, address, found)?),
            Interface::Iommufd(cdevs) => {
                Prepared::Iommufd(CdevAttachment::new(cdevs, address, found)?)
            }
        };
        let calls = self.calls.clone();
        Ok(PreparedDevice { address, vf_token, calls, behind, attachment })
    }
}
