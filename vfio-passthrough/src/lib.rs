//! VFIO PCI passthrough for VMMs: everything between a device bound to vfio-pci and a driver in a guest.
//!
//! A [`PassthroughFunction`] is one PCI function of the host, given to a guest. A VMM's PCI bus calls it for
//! config accesses and for accesses to BARs that no memory slot takes; the rest happens here:
//!
//! ```text
//!   the VMM's PCI bus    config_read/write   bar_read/write   reset   shutdown
//!                                |                 |
//!   function              config overlay    windows    MSI-X table -> plan -> binding
//!     (pci, bars, irq)           |             |                         |
//!   backend                region reads,      mmap                   SET_IRQS       DmaSpace: MAP_DMA,
//!     (group)                 writes           |                         |            UNMAP_DMA
//!   Linux                    /dev/vfio/N: vfio-pci                   eventfds      /dev/vfio/vfio: type1v2
//!                                              |                         |
//!   host traits                           MemorySlots               MsiRouter: irqfds, routes
//!     (kvm)                     KVM_SET_USER_MEMORY_REGION     KVM_IRQFD, KVM_SET_GSI_ROUTING
//! ```
//!
//! Reads and writes of a BAR's direct areas, DMA and interrupts do not pass through any of it: they go from
//! guest to device and back by the hardware's page tables and inside the kernel.
//!
//! What is asked of a VMM is in [`host`], and ready made for KVM in the module `kvm` (feature `kvm`). What is
//! asked of the kernel is in [`backend`]; the module `model` (feature `model`) answers it in memory, for
//! tests without hardware.
//!
//! # Order
//!
//! 1. [`IommuContext::open`], and [`IommuContext::link`] with the hypervisor's VFIO device.
//! 2. [`IommuContext::open_device`] for every device: groups are attached here, and only then it is known what
//!    the IOMMU can map.
//! 3. [`DmaSpace::iova_ranges`], to lay out guest memory; [`dma::allow_locked_memory`]; [`DmaSpace::map_all`].
//! 4. [`PassthroughFunction::new`]; BARs are placed by writing their registers, as firmware does.
//! 5. While the guest runs: [`PassthroughFunction::request_event`] and [`PassthroughFunction::error_event`] are polled.
//! 6. When the guest is gone: [`PassthroughFunction::shutdown`] first, then the mappings.
//!
//! Values hold what they need: a mapping its memory, a window its device, a device its container. Dropping in
//! any order is sound; the order above is the one in which nothing is left to a fallback.
//!
//! # Failures
//!
//! Errors name the device, the operation and the errno. A guest's access that fails reads as all-ones, as on
//! a bus where nothing answers, and is logged at a bounded rate. What the kernel refuses to undo is leaked,
//! with what it refers to, never freed.

#![cfg_attr(test, allow(clippy::arithmetic_side_effects, reason = "a test that overflows panics"))]

pub mod address;
pub mod backend;
mod bars;
pub mod context;
pub mod counters;
mod device;
pub mod dma;
mod error;
pub mod function;
pub mod host;
pub mod irq;
#[cfg(feature = "kvm")]
pub mod kvm;
#[cfg(feature = "model")]
pub mod model;
pub mod pci;
mod sync;

pub use address::{BarIndex, ByteRange, Iova, PciAddress};
pub use context::IommuContext;
pub use dma::DmaSpace;
pub use function::{ConfigEffects, PassthroughFunction, ResetPolicy};
pub use host::VmmServices;
pub use pci::bar::{Bar, BarKind, Space};

/// The README's code is compiled with the tests.
#[cfg(all(doctest, feature = "kvm", feature = "model"))]
#[doc = include_str!("../README.md")]
pub struct Readme;
