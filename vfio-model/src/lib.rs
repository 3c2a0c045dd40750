//! Linux's VFIO as a program: containers, groups, devices and type1 IOMMUs, with the kernel's
//! errnos.
//!
//! This crate is for everybody who tests software that opens `/dev/vfio`: VMMs, drivers in user
//! space, libraries on top of both. It needs no hardware, no root and no IOMMU, and a call takes
//! microseconds.
//!
//! Describe a host in a few lines ([`Description`]), then call the [`System`] as your program calls
//! the kernel: by file descriptors, with the structs and the `argsz` of the ioctls, in any order,
//! legally or not. The system refuses what Linux refuses, in the same order and with the same
//! errno, and keeps alive what Linux keeps alive when descriptors are closed.
//!
//! ```
//! use vfio_model::{Description, Driver, Kernel, MapDma, PciFunction};
//!
//! let nvme = "0000:01:00.0".parse()?;
//! let nic = "0000:02:00.0".parse()?;
//! let system = Description::new(Kernel::Linux6_12)
//!     .device(nvme, 5, Driver::Vfio, PciFunction::nvme())
//!     .device(nic, 5, Driver::Host, PciFunction::nic())
//!     .build();
//! let container = system.open_container();
//! let group = system.open_group(5)?;
//!
//! // The NIC is the host's: the group cannot be given away.
//! let refused = system.set_container(group, container).unwrap_err();
//! assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
//!
//! system.unbind(nic)?;
//! system.set_container(group, container)?;
//! system.set_iommu(container, 3)?;
//! let device = system.open_device(group, "0000:01:00.0")?;
//! let page = MapDma { argsz: 32, flags: 3, vaddr: 0x1000, iova: 0, size: 0x1000 };
//! system.map_dma(container, &page)?;
//!
//! // The device holds the group, and the group the container.
//! system.close(container)?;
//! system.close(group)?;
//! assert_eq!(system.open_group(5).unwrap_err().raw_os_error(), Some(libc::EBUSY));
//! system.close(device)?;
//! assert_eq!(system.locked_memory(), 0);
//! assert!(system.open_fds().is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A device acts by methods that take its address and no descriptor: it fires interrupts
//! ([`System::fire`], [`System::assert_pin`]), reports errors, and reaches memory as far as its
//! command register ([`System::masters_bus`]) and the mappings ([`System::translate`]) allow. Its
//! interrupts arrive in the program's own eventfds, where it hands them in ([`Eventfd`]).
//!
//! A library that takes the place of the C library's `ioctl` passes requests on by their numbers
//! ([`System::ioctl`]).
//!
//! [`Kernel`] lists where Linux 5.4, 6.1 and 6.12 differ. The project's conformance suite holds 6.1
//! and 6.12 against running kernels, call by call; 5.4 follows its source.
//!
//! The crate does not model: structs at addresses without memory (`EFAULT`); races; the registers of
//! config space that vfio-pci emulates, since a write reaches the device as it is; what a reset
//! leaves of config space, which has its values at power-on; and the ioctls of one kind of file on
//! another kind where the same number means something else (an IOMMU's ioctl on a device is
//! `ENOTTY`).
#![deny(missing_docs)]
#![cfg_attr(test, allow(clippy::arithmetic_side_effects, reason = "a test that overflows panics"))]

mod address;
mod container;
mod describe;
mod device;
mod driver;
mod events;
mod files;
mod group;
mod hardware;
mod info;
mod intx;
mod ioctl;
mod irqs;
mod kernel;
mod pins;
mod ranges;
mod regions;
mod reset;
#[cfg(test)]
mod tests;
mod type1;
mod vectors;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use address::{ParsePciAddressError, PciAddress};
pub use describe::{Description, Driver, PciFunction, Region};
pub use driver::{Notice, Notifier};
pub use events::Eventfd;
pub use files::Fd;
pub use irqs::{Interrupts, IrqData, IrqSet};
pub use kernel::Kernel;
pub use type1::{MapDma, UnmapDma};

use container::Container;
use device::Device;
use driver::Notices;
use events::{Counter, Event};
use files::{ContainerId, Files, Kind};
use hardware::Hardware;
use type1::Process;

/// The README's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// A host with `/dev/vfio`, and one process that uses it. See the [crate](self).
#[derive(Debug)]
pub struct System {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    description: Description,
    files: Files,
    process: Process,
    containers: BTreeMap<ContainerId, Container>,
    next_container: u64,
    /// The container of each group that is in one.
    memberships: BTreeMap<u32, ContainerId>,
    /// What VFIO has of devices that are open, or wanted back.
    devices: BTreeMap<PciAddress, Device>,
    /// What was looked at, or changed, of devices by themselves.
    hardware: BTreeMap<PciAddress, Hardware>,
    notices: Notices,
}

impl System {
    fn new(description: Description) -> Self {
        let state = State {
            process: Process::new(&description),
            description,
            files: Files::default(),
            containers: BTreeMap::new(),
            next_container: 0,
            memberships: BTreeMap::new(),
            devices: BTreeMap::new(),
            hardware: BTreeMap::new(),
            notices: Notices::default(),
        };
        Self { state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens `/dev/vfio/vfio`.
    pub fn open_container(&self) -> Fd {
        let mut state = self.state();
        let id = ContainerId(state.next_container);
        state.next_container = id.0.wrapping_add(1);
        state.containers.insert(id, Container::default());
        state.files.open(Kind::Container(id))
    }

    /// Opens `/dev/vfio/N`: ENOENT while vfio-pci has none of the group's devices, EBUSY while
    /// somebody has it.
    pub fn open_group(&self, group: u32) -> io::Result<Fd> {
        self.state().open_group(group)
    }

    /// Makes an eventfd.
    pub fn open_eventfd(&self) -> Fd {
        self.open_eventfd_of(Arc::new(Counter::default()))
    }

    /// Makes an fd of an eventfd that the program has.
    pub fn open_eventfd_of(&self, eventfd: Arc<dyn Eventfd>) -> Fd {
        self.state().files.open_eventfd(eventfd)
    }

    /// Makes a virtual machine with a VFIO device (`KVM_DEV_TYPE_VFIO`); closing it ends both.
    pub fn open_kvm(&self) -> Fd {
        self.state().files.open(Kind::Kvm)
    }

    /// Closes an fd, in any order with others.
    pub fn close(&self, fd: Fd) -> io::Result<()> {
        self.state().close(fd)
    }

    /// What was signalled on an eventfd since the last time, as a read of it gives; 0 for EAGAIN.
    pub fn signals(&self, eventfd: Fd) -> io::Result<u64> {
        let event = self.state().files.eventfd(eventfd)?;
        Ok(event.0.take())
    }

    /// Adds 1 to an eventfd, as a write of the program does.
    pub fn signal(&self, eventfd: Fd) -> io::Result<()> {
        self.state().files.eventfd(eventfd)?.signal();
        Ok(())
    }

    /// `VFIO_GET_API_VERSION`
    pub fn api_version(&self, container: Fd) -> io::Result<u32> {
        self.state().api_version(container)
    }

    /// `VFIO_CHECK_EXTENSION`: 0 for what there is not.
    pub fn check_extension(&self, container: Fd, extension: u64) -> io::Result<u32> {
        self.state().check_extension(container, extension)
    }

    /// `VFIO_SET_IOMMU`: EINVAL without a group or with an IOMMU set, ENODEV for a type that is
    /// none.
    pub fn set_iommu(&self, container: Fd, kind: u64) -> io::Result<()> {
        self.state().set_iommu(container, kind)
    }

    /// `VFIO_IOMMU_MAP_DMA`: EEXIST for an overlap, ENOSPC beyond the limit of mappings, EINVAL
    /// beyond what the IOMMU reaches, ENOMEM beyond the limit of locked memory, EFAULT where no
    /// memory is.
    pub fn map_dma(&self, container: Fd, call: &MapDma) -> io::Result<()> {
        self.state().map_dma(container, call)
    }

    /// `VFIO_IOMMU_UNMAP_DMA`: how many bytes were unmapped, which may be none; EINVAL where it
    /// would bisect a mapping.
    pub fn unmap_dma(&self, container: Fd, call: &UnmapDma) -> io::Result<u64> {
        self.state().unmap_dma(container, call)
    }

    /// `VFIO_IOMMU_GET_INFO`, on `struct vfio_iommu_type1_info` and the room behind it.
    pub fn iommu_info(&self, container: Fd, buffer: &mut [u8]) -> io::Result<()> {
        self.state().iommu_info(container, buffer)
    }

    /// `VFIO_GROUP_GET_STATUS`: the flags, for a struct of `argsz` bytes.
    pub fn group_status(&self, group: Fd, argsz: u32) -> io::Result<u32> {
        self.state().group_status(group, argsz)
    }

    /// `VFIO_GROUP_SET_CONTAINER`: EINVAL if it has one, EPERM where groups with and without an
    /// IOMMU would mix.
    pub fn set_container(&self, group: Fd, container: Fd) -> io::Result<()> {
        self.state().set_container(group, container)
    }

    /// `VFIO_GROUP_UNSET_CONTAINER`: EINVAL if it has none, EBUSY while a device is open.
    pub fn unset_container(&self, group: Fd) -> io::Result<()> {
        self.state().unset_container(group)
    }

    /// `VFIO_GROUP_GET_DEVICE_FD`: ENODEV for what vfio-pci does not have in this group, EINVAL
    /// until the container has an IOMMU.
    pub fn open_device(&self, group: Fd, name: &str) -> io::Result<Fd> {
        self.state().open_device(group, name)
    }

    /// Links KVM's VFIO device with a group (`KVM_DEV_VFIO_FILE_ADD`): EEXIST for the second time.
    pub fn link(&self, kvm: Fd, file: Fd) -> io::Result<()> {
        self.state().link(kvm, file)
    }

    /// Takes the link away (`KVM_DEV_VFIO_FILE_DEL`): ENOENT if there is none.
    pub fn unlink(&self, kvm: Fd, file: Fd) -> io::Result<()> {
        self.state().unlink(kvm, file)
    }

    /// `VFIO_DEVICE_GET_INFO`, on `struct vfio_device_info`.
    pub fn device_info(&self, device: Fd, buffer: &mut [u8]) -> io::Result<()> {
        self.state().device_info(device, buffer)
    }

    /// `VFIO_DEVICE_GET_REGION_INFO`, on `struct vfio_region_info` and the room behind it.
    pub fn region_info(&self, device: Fd, buffer: &mut [u8]) -> io::Result<()> {
        self.state().region_info(device, buffer)
    }

    /// `VFIO_DEVICE_GET_IRQ_INFO`, on `struct vfio_irq_info`.
    pub fn irq_info(&self, device: Fd, buffer: &mut [u8]) -> io::Result<()> {
        self.state().irq_info(device, buffer)
    }

    /// `VFIO_DEVICE_SET_IRQS`
    pub fn set_irqs(&self, device: Fd, set: &IrqSet) -> io::Result<()> {
        self.state().set_irqs(device, set)
    }

    /// The interrupts of a device.
    pub fn interrupts(&self, device: PciAddress) -> Interrupts {
        let state = self.state();
        let device = state.devices.get(&device);
        device.map(|own| own.irqs.interrupts()).unwrap_or_default()
    }

    /// A device reports an uncorrectable error: its error interrupt is signalled.
    pub fn report_error(&self, device: PciAddress) {
        let state = self.state();
        let error = state.devices.get(&device).and_then(|own| own.irqs.error.as_ref());
        error.into_iter().for_each(Event::signal);
    }

    /// Whether somebody has a device open.
    pub fn is_open(&self, device: PciAddress) -> bool {
        self.state().files.exists(Kind::Device(device))
    }

    /// Takes a device from its driver, as root does by `driver/unbind`. True if that is done; false
    /// if the device is open: its user is asked for it (the request interrupt), and has it until
    /// all fds are closed. In 5.4, false also while the group is in a container and this was the
    /// last of its devices.
    pub fn unbind(&self, device: PciAddress) -> io::Result<bool> {
        self.state().unbind(device)
    }

    /// The kernel's waiting time for a device that is leaving has passed once more (10 s at a
    /// time): the user is asked again. How often that was by now; 0 for a device that is not
    /// wanted.
    pub fn ask_again(&self, device: PciAddress) -> u32 {
        self.state().ask_for(device)
    }

    /// The driver that has a device; `None` for a device that does not exist.
    pub fn driver(&self, device: PciAddress) -> Option<Driver> {
        let state = self.state();
        state.description.functions.get(&device).map(|entry| entry.driver)
    }

    /// Gives a device without a driver to one.
    pub fn bind(&self, device: PciAddress, driver: Driver) -> io::Result<()> {
        self.state().bind(device, driver)
    }

    /// A driver of a device registers a notifier (`vfio_register_notifier`): EINVAL for other
    /// `events` than 1, which is the one event of each kind, and until the group is ready for use;
    /// ENODEV for a group that VFIO does not know. Where the group is linked with a KVM, all
    /// notifiers of that kind are called again.
    pub fn register_notifier(
        &self,
        device: PciAddress,
        kind: Notifier,
        events: u64,
    ) -> io::Result<u64> {
        self.state().register_notifier(device, kind, events)
    }

    /// Unregisters a notifier (`vfio_unregister_notifier`): ENOENT for one that is not
    /// registered; EINVAL once the group is not in use any more.
    pub fn unregister_notifier(&self, notifier: u64) -> io::Result<()> {
        self.state().unregister_notifier(notifier)
    }

    /// The calls of a notifier so far.
    pub fn notices(&self, notifier: u64) -> Vec<Notice> {
        self.state().notices.told(notifier)
    }

    /// A driver of a device pins pages by their numbers in the device's addresses
    /// (`vfio_pin_pages`): where each is in the process, as a page number. EINVAL for none, E2BIG
    /// for more than 512, EPERM for a group without an IOMMU or for an access
    /// (`VFIO_DMA_MAP_FLAG_*`) that the mapping does not have, EINVAL for what is not mapped, until
    /// the group is ready for use, and until there is a notifier of unmaps; EACCES for a type1 of
    /// version 1.
    pub fn pin_pages(
        &self,
        device: PciAddress,
        pages: &[u64],
        access: u32,
    ) -> io::Result<Vec<u64>> {
        self.state().pin_pages(device, pages, access)
    }

    /// Unpins pages (`vfio_unpin_pages`), up to the first that is not mapped: how many.
    /// Errors as for [`pin_pages`](Self::pin_pages).
    pub fn unpin_pages(&self, device: PciAddress, pages: &[u64]) -> io::Result<usize> {
        self.state().unpin_pages(device, pages)
    }

    /// The process gets `CAP_SYS_RAWIO`, or loses it; its fds stay.
    pub fn set_raw_io(&self, raw_io: bool) {
        self.state().description.raw_io = raw_io;
    }

    /// The fds that are open: none, after a test that leaks nothing.
    pub fn open_fds(&self) -> Vec<Fd> {
        self.state().files.fds().collect()
    }

    /// Containers that there are, those whose fd is closed and that groups keep included.
    pub fn containers(&self) -> usize {
        self.state().containers.len()
    }

    /// The bytes that mappings have locked.
    pub fn locked_memory(&self) -> u64 {
        self.state().process.locked()
    }

    /// Where in the process's memory a device's access to `iova` goes, and how many bytes from
    /// there on are in the same mapping; `None` where nothing is mapped.
    pub fn translate(&self, container: Fd, iova: u64) -> io::Result<Option<(u64, u64)>> {
        self.state().type1(container, |type1, _, _| Ok(type1.translate(iova)))
    }

    /// The mappings of a container, in order.
    pub fn mappings(&self, container: Fd) -> io::Result<Vec<Range<u64>>> {
        self.state().mappings(container)
    }
}

impl State {
    fn close(&mut self, fd: Fd) -> io::Result<()> {
        let linked = self.files.linked_with(fd);
        let gone = self.files.close(fd)?;
        linked.into_iter().for_each(|kind| self.tell_of_kvm(kind, None));
        for kind in gone {
            match kind {
                Kind::Container(id) => self.drop_container(id),
                Kind::Group(group) => self.dissolve(group),
                Kind::Device(address) => {
                    self.released(address);
                    let entry = self.description.functions.get(&address);
                    if let Some(group) = entry.map(|entry| entry.group) {
                        self.dissolve(group);
                    }
                }
                Kind::Revoked | Kind::Eventfd | Kind::Kvm => {}
            }
        }
        Ok(())
    }
}

fn errno(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}
