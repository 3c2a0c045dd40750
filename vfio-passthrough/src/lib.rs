//! VFIO PCI passthrough for VMMs: the layer between a device bound to vfio-pci and a guest's
//! driver.
//!
//! A [`PassthroughFunction`] is one PCI function of the host that is assigned to a guest. A VMM's
//! PCI bus calls it for config accesses, and for BAR accesses that no memory slot covers:
//!
//! ```text
//!   the VMM's PCI bus   config_read/write  place_bar   bar_read/write   reset  detach  shutdown
//!                              |                |
//!   function            config overlay       windows       MSI-X table -> plan -> binding
//!     (pci, bars, irq)         |                |                           |
//!   backend             region reads,         mmap                      SET_IRQS   DmaSpace:
//!     (context, type1)  and writes              |                           |       MAP_DMA,
//!   Linux                /dev/vfio/N: vfio-pci  |                        eventfds   UNMAP_DMA
//!                                               |                           |       /dev/vfio/vfio
//!   VmmServices                            MemorySlots                  MsiRouter: irqfds, routes
//!     (host, kvm)                KVM_SET_USER_MEMORY_REGION   KVM_IRQFD, KVM_SET_GSI_ROUTING
//! ```
//!
//! Accesses to the direct areas of a BAR, DMA and interrupts bypass this crate while the guest
//! runs: the hardware's page tables translate the first two, and the kernel forwards interrupts
//! from eventfd to irqfd.
//!
//! The module [`host`] defines what the crate needs of a VMM: [`VmmServices`]. The module `kvm`
//! (feature `kvm`) implements it for KVM. The module [`backend`] defines what the crate needs of
//! the kernel. The module `model` (feature `model`) implements that in memory, for tests without
//! hardware.
//!
//! # The order of calls
//!
//! 1. [`IommuContext::open`], then [`IommuContext::link`] with the hypervisor's VFIO device.
//! 2. [`IommuContext::open_device`] for every device. This attaches the IOMMU groups. The ranges
//!    that the IOMMU can map are known only after the last one. Several devices are opened side by
//!    side: [`IommuContext::prepare_device`].
//! 3. [`DmaSpace::iova_ranges`], to lay out guest memory. Then [`dma::allow_locked_memory`] and
//!    [`DmaSpace::map_all`].
//! 4. [`PassthroughFunction::new`] for every device, with [`VmmServices`]. Then
//!    [`PassthroughFunction::place_bar`] for every BAR: this is what firmware does. The guest
//!    enables decoding and may move the BARs.
//! 5. While the guest runs: forward its accesses, carry out the [`ConfigEffects`] of each call, and
//!    poll the two events of each function. If the host asks for the device, call
//!    [`PassthroughFunction::detach`]. A device that comes is opened and mapped by the same calls;
//!    the example `hot_plug` shows it.
//! 6. When the guest resets: [`PassthroughFunction::reset`]. When it ends:
//!    [`PassthroughFunction::shutdown_before_close`]; then close the devices; after that, unmap
//!    guest memory.
//!
//! Each value holds what it needs: a mapping holds its memory, a window its device, and a device
//! its container. Any order of drops is sound. With the order above, failures are returned instead
//! of logged.
//!
//! # The least a VMM must do
//!
//! - Forward the guest's config accesses to [`PassthroughFunction::config_read`] and
//!   [`PassthroughFunction::config_write`]. Otherwise the guest finds no device.
//! - Forward accesses to BARs that no memory slot covers: [`PassthroughFunction::decode`], then
//!   [`PassthroughFunction::bar_read`] or [`PassthroughFunction::bar_write`]. Otherwise the guest
//!   cannot program the MSI-X table, and areas that cannot be mapped do not work.
//! - Map all guest memory that devices access, with [`DmaSpace::map_all`], before the guest enables
//!   bus mastering. Otherwise the IOMMU blocks the DMA.
//! - Link the context to the hypervisor with [`IommuContext::link`]. Otherwise KVM does not learn
//!   of non-coherent DMA (Documentation/virt/kvm/devices/vfio.rst), and VFIO drivers that need KVM
//!   refuse to open their device.
//! - Carry out the effects that a call returns:
//!   - [`slots_freed`](ConfigEffects::slots_freed): call [`PassthroughFunction::retry_placement`]
//!     on the other functions. Otherwise a BAR whose memory slot was refused stays trapped: slow,
//!     but correct.
//!   - [`bars`](ConfigEffects::bars): move the ranges of a bus that dispatches by range. Otherwise
//!     accesses go to the old address. A bus that calls [`PassthroughFunction::decode`] can ignore
//!     this.
//!   - [`coalesced_writes`](ConfigEffects::coalesced_writes): optional. Otherwise each write of the
//!     MSI-X table costs an exit.
//!   - [`sequence`](ConfigEffects::sequence): ignore effects older than the last ones applied.
//!     Otherwise two vCPUs can leave the VMM with the older state.
//! - Poll [`PassthroughFunction::request_event`], and call [`PassthroughFunction::detach`] when it
//!   fires. Otherwise an unbind or unplug on the host blocks until the VMM ends.
//! - Poll [`PassthroughFunction::error_event`], and stop the guest,
//!   [recover](PassthroughFunction::recover) or detach. Otherwise the guest continues with a device
//!   whose data may be corrupt.
//! - Call [`PassthroughFunction::reset`] when the guest resets; stop its vCPUs first if the reset
//!   is that of a bus ([`Reset::Bus`](function::Reset::Bus)). Otherwise the device writes to the
//!   memory of the rebooted guest.
//! - Call [`PassthroughFunction::shutdown_before_close`] or [`PassthroughFunction::shutdown`] before
//!   guest memory is unmapped. Otherwise the IOMMU blocks DMA that is still under way, and failures
//!   of the reset are only logged, by the drop.
//! - With the module `kvm`: poll the file for interrupts that software injects, if the VMM created
//!   it. Otherwise such an interrupt arrives only after the next change of the routing table.
//!
//! # Failures
//!
//! An error names the device, the operation and the errno. It converts to [`std::io::Error`], so
//! that `?` works in a VMM's callbacks. A guest access that fails reads as all-ones, as on a bus
//! where no device answers. A function logs at most 16 of them. A device that does not respond, or
//! does not wake, is refused at its assignment; one that stops to respond reads as all-ones. If the kernel refuses to undo an
//! operation, the memory that belongs to it is leaked, not freed.

#![deny(missing_debug_implementations)]
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
mod presence;
mod services;
mod sync;

pub use address::{BarIndex, ByteRange, Iova, PciAddress};
pub use context::IommuContext;
pub use dma::DmaSpace;
pub use function::{ConfigEffects, PassthroughFunction, ResetPolicy};
pub use pci::bar::{Bar, BarKind, Space};
pub use services::VmmServices;

/// The doctests compile the README's code.
#[cfg(all(doctest, feature = "kvm", feature = "model"))]
#[doc = include_str!("../README.md")]
pub struct Readme;
