//! Linux's VFIO as a program: containers, groups, devices, type1 IOMMUs and iommufd, with the
//! kernel's errnos.
//!
//! Use this crate to test software that opens `/dev/vfio` or `/dev/iommu`: VMMs, drivers in user space, and the
//! libraries below them. It needs no hardware, no root and no IOMMU, and a call takes microseconds.
//!
//! Describe a host ([`Description`]), then call the [`System`] as a program calls the kernel: with
//! file descriptors, with the structs and the `argsz` of the ioctls, in any order, legally or not.
//! The system refuses what Linux refuses, in the same order and with the same errno. After a
//! descriptor is closed, it keeps alive what Linux keeps alive.
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
//! // A driver of the host has the NIC, so the group is not viable.
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
//! // The device keeps the group in use, and the group keeps the container.
//! system.close(container)?;
//! system.close(group)?;
//! assert_eq!(system.open_group(5).unwrap_err().raw_os_error(), Some(libc::EBUSY));
//! system.close(device)?;
//! assert_eq!(system.locked_memory(), 0);
//! assert!(system.open_fds().is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # iommufd
//!
//! A program can open the character device of a device instead of its group, bind it to an iommufd
//! ([`System::bind_iommufd`]), and attach it to an address space ([`System::attach_pt`]). Areas of
//! memory that are mapped ([`System::ioas_map`]) are pinned while a device is attached. An iommufd
//! can also be the container of groups, with the calls of a container.
//!
//! ```
//! use vfio_model::{
//!     AttachPt, BindIommufd, Description, Driver, IoasMap, Kernel, PciFunction,
//! };
//!
//! let nvme = "0000:01:00.0".parse()?;
//! let system = Description::new(Kernel::Linux6_12)
//!     .device(nvme, 5, Driver::Vfio, PciFunction::nvme())
//!     .build();
//! let (iommufd, device) = (system.open_iommufd()?, system.open_cdev(nvme)?);
//! let ioas = system.ioas_alloc(iommufd, 0)?;
//! let flags = IoasMap::FIXED_IOVA | IoasMap::READABLE | IoasMap::WRITEABLE;
//! let page = IoasMap { flags, ioas, user_va: 0x1000, length: 0x1000, iova: 0 };
//! system.ioas_map(iommufd, &page)?;
//! assert_eq!(system.locked_memory(), 0, "no device is attached");
//!
//! // The group cannot be opened while its device is bound.
//! system.bind_iommufd(device, &BindIommufd::to(iommufd))?;
//! assert_eq!(system.open_group(5).unwrap_err().raw_os_error(), Some(libc::EBUSY));
//!
//! system.attach_pt(device, &AttachPt { argsz: AttachPt::ARGSZ, flags: 0, id: ioas })?;
//! assert_eq!(system.locked_memory(), 0x1000);
//! for fd in [iommufd, device] {
//!     system.close(fd)?;
//! }
//! assert_eq!((system.iommufds(), system.locked_memory()), (0, 0));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Devices
//!
//! A device acts through methods that take its address and no descriptor. It fires interrupts
//! ([`System::fire`], [`System::assert_pin`]), reports errors ([`System::report_error`]), and does
//! DMA as its command register ([`System::masters_bus`]) and the mappings ([`System::translate`])
//! allow. Interrupts signal the program's own eventfds, if it passes them in ([`Eventfd`]).
//!
//! The host acts, too: it unbinds and binds drivers ([`System::unbind`], [`System::bind`]), and
//! requests a device that is open ([`System::request_again`]).
//!
//! # Errors
//!
//! Each call documents its errnos and the kernel function that it follows. Every call fails with
//! `EBADF` for an fd that is not open. A file that does not implement an ioctl returns `ENOTTY`; a
//! container without an IOMMU returns `EINVAL` for the ioctls of an IOMMU.
//!
//! # Programs that call ioctl
//!
//! A library that is preloaded into a program replaces the C library's `ioctl` and passes requests
//! on by their numbers ([`System::ioctl`]).
//!
//! # Limits
//!
//! [`Kernel`] lists the differences between Linux 5.4, 6.1, 6.12 and 7.3. The project's conformance
//! suite compares 6.1, 6.12 and 7.3 with running kernels, call by call, and iommufd with 6.12 and
//! 7.3; 5.4 follows its source.
//!
//! The crate does not model:
//! - the dirty bitmap of an unmap: its flag is `EINVAL`;
//! - calls of iommufd that copy areas, or make page tables: they are `ENOTTY`; files other than
//!   memfds, and PASIDs;
//! - structs at addresses without memory (`EFAULT`), and races;
//! - the registers of config space that vfio-pci emulates: a write reaches the device unchanged;
//! - the config space that a reset preserves: it has its values at power-on;
//! - an ioctl number that means another call on another kind of file: an IOMMU's ioctl on a device
//!   is `ENOTTY`.
#![deny(missing_debug_implementations)]
#![deny(missing_docs)]
#![cfg_attr(test, allow(clippy::arithmetic_side_effects, reason = "a test that overflows panics"))]

mod address;
mod attach;
mod backing;
mod cdev;
mod compat;
mod container;
mod describe;
mod device;
mod dirty;
mod driver;
mod errno;
mod events;
mod fds;
mod files;
mod group;
mod hardware;
mod info;
mod interrupts;
mod intx;
mod ioas;
mod ioas_allocate;
mod ioctl;
mod ioctl_iommufd;
mod iommufd;
mod irq_set;
mod irqfd;
mod irqs;
mod kernel;
mod map_file;
mod mock;
mod notifiers;
mod objects;
mod pins;
mod presence;
mod process;
mod ranges;
mod regions;
mod reset;
mod spans;
mod state;
#[cfg(test)]
mod tests;
mod type1;
mod unbind;
mod vectors;
mod vf_token;

pub use address::{ParsePciAddressError, PciAddress};
pub use cdev::{AttachPt, BindIommufd};
pub use describe::{AfterReset, Description, Driver, PciFunction, Region};
pub use errno::FewerVectors;
pub use events::Eventfd;
pub use files::Fd;
pub use ioas::{IoasMap, IoasUnmap};
pub use irq_set::{IrqData, IrqSet};
pub use irqfd::Irqfd;
pub use irqs::Interrupts;
pub use kernel::Kernel;
pub use map_file::IoasMapFile;
pub use mock::MockDevice;
pub use notifiers::{Notice, Notifier};
pub use objects::IommuOption;
pub use state::System;
pub use type1::{MapDma, UnmapDma};

/// Runs the README's example as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
