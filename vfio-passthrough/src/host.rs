//! The traits that a VMM implements for this crate. They are all that the crate knows of a VMM: it
//! has no bus, no allocator and no VM type. The feature `kvm` implements them on kvm-ioctls.
//!
//! The crate only reports the errors of these traits: it does not depend on their errno. A VMM
//! whose hypervisor layer hides the errno returns `io::Error::other`.

mod memory;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

pub use crate::pci::message::MsiMessage;
pub use memory::{HostMemory, MemorySlot, MemorySlots};

/// Routes message-signalled interrupts into the guest.
///
/// On KVM, `kvm::KvmRouter` (feature `kvm`) implements it, and also keeps the VMM's own routes. A
/// VMM with its own routing table implements this trait and [`MsiVectors`]: see the example
/// `own_router`.
pub trait MsiRouter: Send + Sync {
    /// Allocates `count` vectors (1 to 2048); none is delivered yet. A function calls it once for
    /// MSI and once for MSI-X, when it is made. An implementation can wait with allocations in the
    /// host until a vector is used.
    ///
    /// # Errors
    ///
    /// The hypervisor's errno: the function is then not made.
    fn allocate(&self, count: u16) -> io::Result<Box<dyn MsiVectors>>;
}

/// The vectors of one function, numbered from 0. Dropping the value detaches every irqfd, then
/// removes every route, then frees every GSI.
///
/// A vector that is not delivered is masked: its trigger collects interrupts, and the guest reads
/// them as the pending bit. They are delivered when the vector is unmasked: KVM does so when an
/// irqfd is attached to a readable eventfd.
pub trait MsiVectors: Send {
    /// The non-blocking eventfd that VFIO signals when the vector fires. It stays the same for the
    /// life of the vector.
    ///
    /// # Errors
    ///
    /// The errno of `eventfd2`.
    fn trigger(&mut self, vector: u16) -> io::Result<Arc<EventFd>>;

    /// Carries out a batch: `Some` delivers the vector to the guest as this message, `None` stops
    /// delivery.
    ///
    /// An irqfd is detached before its route changes, and attached after the route is committed.
    /// KVM replaces its whole table in each `KVM_SET_GSI_ROUTING`: one call is enough for a batch,
    /// and none is needed if no message is new.
    ///
    /// # Errors
    ///
    /// `StorageFull` if no GSI is free: nothing was changed. The error reports how many GSIs were
    /// requested, used and free. Otherwise it is the hypervisor's errno: each vector of the batch
    /// is in its old state, in its new state, or not delivered, and the crate repeats the change at
    /// the guest's next access.
    fn update(&mut self, changes: &[(u16, Option<MsiMessage>)]) -> io::Result<()>;
}

/// The level-triggered inputs of the guest's interrupt controller to which the INTx pins of a slot
/// are wired (PCI 2.2.6). Pins may share an input, and so may slots.
pub trait IntxLine: Send + Sync {
    /// Connects the function's pin to its line, until the connection is dropped. `pin` is what the
    /// function's config space has: 1 for INTA# to 4 for INTD# (PCI 3.0, 6.2.4).
    ///
    /// # Errors
    ///
    /// The hypervisor's errno.
    fn connect(&self, pin: u8) -> io::Result<Box<dyn IntxConnection>>;
}

/// The connection of an INTx pin to its line. Dropping it disconnects the pin.
pub trait IntxConnection: Send {
    /// The eventfd that VFIO signals when the pin is asserted. VFIO masks the pin then.
    fn trigger(&self) -> &Arc<EventFd>;

    /// The eventfd that the hypervisor signals when the guest has acknowledged the interrupt. VFIO
    /// then unmasks the pin, and signals again if the pin is still asserted. A VMM with its own
    /// IOAPIC lowers the line and writes to this eventfd when the guest ends the interrupt (EOI).
    fn resample(&self) -> &Arc<EventFd>;
}

/// Reports IOMMU groups to the hypervisor: KVM needs to know the groups of a VM
/// (Documentation/virt/kvm/devices/vfio.rst).
pub trait GroupLink: Send + Sync {
    /// Reports that the VM has a group. `group` is the group's file (`/dev/vfio/N`), or with iommufd
    /// that of a device (`/dev/vfio/devices/vfioN`). The call comes before the devices are opened
    /// if a driver needs the VM at that time.
    ///
    /// # Errors
    ///
    /// The hypervisor's errno.
    fn add(&self, group: BorrowedFd<'_>) -> io::Result<()>;

    /// Reports that the VM no longer has a group.
    ///
    /// # Errors
    ///
    /// The hypervisor's errno.
    fn remove(&self, group: BorrowedFd<'_>) -> io::Result<()>;
}
