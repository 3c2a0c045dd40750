//! What this crate asks of the VMM that uses it. It knows nothing else of a VMM: no bus, no
//! allocator, no VM type. The feature `kvm` has all of it ready made on kvm-ioctls.
//!
//! Of the errors that these traits return, the crate looks at none but to report it: a VMM whose
//! hypervisor layer hides the errno returns `io::Error::other`.

mod memory;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

pub use crate::pci::message::MsiMessage;
pub use memory::{HostMemory, MemorySlot, MemorySlots};

/// Routes message-signalled interrupts into the guest.
///
/// On KVM, `kvm::KvmRouter` (feature `kvm`) does so, and takes the VMM's own routes too. A VMM with
/// a routing table of its own implements this trait and [`MsiVectors`]: see the example
/// `own_router`.
pub trait MsiRouter: Send + Sync {
    /// Room for `count` vectors (1 to 2048), none delivered yet. A function calls it once for MSI
    /// and once for MSI-X, when it is made. It need take nothing from the host until a vector is
    /// used.
    ///
    /// # Errors
    ///
    /// The hypervisor's errno: there is no function.
    fn allocate(&self, count: u16) -> io::Result<Box<dyn MsiVectors>>;
}

/// The vectors of one function, numbered from 0. Dropping it gives back every irqfd, then every
/// route, then every GSI.
///
/// A vector that is not delivered is masked: its trigger collects what fires. It is the pending bit
/// that the guest reads, and is delivered when the vector comes back, as KVM does when an irqfd is
/// attached to an eventfd that is readable.
pub trait MsiVectors: Send {
    /// The eventfd that VFIO signals when the vector fires, non-blocking. The same one for the life
    /// of the vector.
    ///
    /// # Errors
    ///
    /// The errno of `eventfd2`.
    fn trigger(&mut self, vector: u16) -> io::Result<Arc<EventFd>>;

    /// Carries out a batch: `Some` delivers the vector to the guest as this message, `None` stops
    /// delivery.
    ///
    /// An irqfd is detached before its route changes, and attached after it was committed. KVM
    /// replaces its whole table in each `KVM_SET_GSI_ROUTING`: one call is enough for a batch, and
    /// none is needed where no message is new.
    ///
    /// # Errors
    ///
    /// `StorageFull` where GSIs ran out, with how many were asked for, used and free; then none was
    /// taken and nothing changed. Else the hypervisor's errno: a vector of the batch may then be as
    /// it was, or as asked, or not delivered, and the crate gives it again with the guest's next
    /// access.
    fn update(&mut self, changes: &[(u16, Option<MsiMessage>)]) -> io::Result<()>;
}

/// A level-triggered input of the guest's interrupt controller, which a function's INTx pin is
/// wired to (PCI 2.2.6). Functions may share it.
pub trait IntxLine: Send + Sync {
    /// Wires the pin to the line, until the connection is dropped.
    ///
    /// # Errors
    ///
    /// The hypervisor's errno.
    fn connect(&self) -> io::Result<Box<dyn IntxConnection>>;
}

/// An INTx pin that is wired to its line. Dropping it cuts the wire.
pub trait IntxConnection: Send {
    /// VFIO signals this eventfd when the pin is asserted, and masks the pin.
    fn trigger(&self) -> &Arc<EventFd>;

    /// The hypervisor signals this eventfd when the guest has acknowledged the interrupt; VFIO then
    /// unmasks the pin, and fires again where it is still asserted. A VMM with an IOAPIC of its own
    /// lowers the line and writes to this eventfd when the guest ends the interrupt (EOI).
    fn resample(&self) -> &Arc<EventFd>;
}

/// The hypervisor's own interest in IOMMU groups: KVM wants to know which ones a VM has
/// (Documentation/virt/kvm/devices/vfio.rst).
pub trait GroupLink: Send + Sync {
    /// Reports that the VM has a group, by the group's file (`/dev/vfio/N`), before its devices are
    /// opened.
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
