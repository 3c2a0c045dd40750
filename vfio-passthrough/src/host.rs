//! What this crate asks of the VMM that uses it. Nothing else of a VMM is known here: no bus, no allocator,
//! no VM type. The feature `kvm` has all of it ready made on kvm-ioctls.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use vm_memory::GuestRegionMmap;
use vm_memory::bitmap::Bitmap;
use vmm_sys_util::eventfd::EventFd;

use crate::dma::DmaSpace;
pub use crate::pci::message::MsiMessage;

/// Memory of this process that a device or a guest may read and write at any time.
///
/// # Safety
///
/// While the value lives, the `size()` bytes at `host_address()` are mapped, shared storage, stay where they
/// are, and are accessed by this process only through raw pointers and volatile or atomic accesses: never
/// through a Rust reference, since a device writes to them when it likes. Both methods always return the
/// same.
pub unsafe trait HostMemory: Send + Sync {
    /// Where the memory is in this process, aligned to a page.
    fn host_address(&self) -> *mut u8;
    /// How many bytes it has, a multiple of the page size.
    fn size(&self) -> u64;
}

// SAFETY: a region owns its mapping (it holds an `Arc` of the `MmapRegion`, which unmaps when dropped and
// never moves or resizes), and vm-memory accesses it by volatile operations on raw pointers only.
unsafe impl<B: Bitmap + Send + Sync> HostMemory for GuestRegionMmap<B> {
    fn host_address(&self) -> *mut u8 {
        self.as_ptr()
    }

    fn size(&self) -> u64 {
        // usize is at most 64 bits wide on every target of Linux.
        (**self).size() as u64
    }
}

/// Puts memory of this process at a place of the guest's physical address space.
pub trait MemorySlots: Send + Sync {
    /// Makes `memory` appear at the guest physical address `gpa` (page-aligned), until the slot is taken
    /// away.
    ///
    /// # Errors
    ///
    /// The hypervisor's errno: `EEXIST` where the range overlaps another slot, `ENOSPC` where slots ran out,
    /// `EINVAL` where the address is not one that the guest can have.
    fn place(&self, gpa: u64, memory: Arc<dyn HostMemory>) -> io::Result<Box<dyn MemorySlot>>;
}

/// Memory that is in the guest's address space. It keeps the memory alive. Dropping it takes it away; where
/// the hypervisor refuses that, the memory is leaked rather than freed under the guest, and a line is logged.
pub trait MemorySlot: Send {
    /// Takes the memory away. Once it is gone, this does nothing.
    ///
    /// # Errors
    ///
    /// The hypervisor's errno. The memory stays where it is, and alive: this may be called again.
    fn remove(&mut self) -> io::Result<()>;
}

/// Routes message-signalled interrupts into the guest.
pub trait MsiRouter: Send + Sync {
    /// Room for `count` vectors (1 to 2048), none delivered yet. Takes nothing from the host until a vector
    /// is used.
    fn allocate(&self, count: u16) -> io::Result<Box<dyn MsiVectors>>;
}

/// The vectors of one function. Dropping it gives back every irqfd, then every route, then every GSI.
pub trait MsiVectors: Send {
    /// The eventfd that VFIO signals when the vector fires. The same one for the life of the vector; made at
    /// first use.
    fn trigger(&mut self, vector: u16) -> io::Result<Arc<EventFd>>;

    /// Carries out a batch: `Some` delivers the vector to the guest as this message, `None` stops delivery
    /// and lets the trigger collect what fires meanwhile, which is delivered when the vector comes back.
    ///
    /// At most one routing update for the whole batch, and none where no message is new: KVM replaces its
    /// whole table in each.
    ///
    /// # Errors
    ///
    /// `StorageFull` where GSIs ran out, with how many were asked for, used and free; then none was taken and
    /// nothing changed. Else the hypervisor's errno: a vector of the batch may then be as it was, or as asked,
    /// or not delivered, and is to be given again.
    fn update(&mut self, changes: &[(u16, Option<MsiMessage>)]) -> io::Result<()>;

    /// True where the vector fired while it was not delivered.
    fn is_pending(&self, vector: u16) -> bool;

    /// Forgets what fired while the vector was not delivered.
    fn clear_pending(&mut self, vector: u16);
}

/// A level-triggered input of the guest's interrupt controller, which a function's INTx pin is wired to.
/// Others may share it.
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
    /// VFIO signals this one when the pin is asserted, and masks the pin.
    fn trigger(&self) -> &Arc<EventFd>;

    /// The hypervisor signals this one when the guest has acknowledged the interrupt; VFIO then unmasks the
    /// pin, and fires again where it is still asserted.
    fn resample(&self) -> &Arc<EventFd>;
}

/// The hypervisor's own interest in IOMMU groups: KVM wants to know which ones a VM has
/// (Documentation/virt/kvm/devices/vfio.rst).
pub trait GroupLink: Send + Sync {
    /// The group is the VM's.
    ///
    /// # Errors
    ///
    /// The hypervisor's errno.
    fn add(&self, group: BorrowedFd<'_>) -> io::Result<()>;

    /// The group is no more the VM's.
    ///
    /// # Errors
    ///
    /// The hypervisor's errno.
    fn remove(&self, group: BorrowedFd<'_>) -> io::Result<()>;
}

/// What a function needs of the VMM that it is in.
#[derive(Clone)]
pub struct VmmServices {
    /// Puts BARs into the guest's memory.
    pub slots: Arc<dyn MemorySlots>,
    /// Routes message-signalled interrupts into the guest.
    pub msi: Arc<dyn MsiRouter>,
    /// The line that the function's INTx pin is wired to. Without one the guest sees a function without a pin.
    pub intx: Option<Arc<dyn IntxLine>>,
    /// Where other devices of the guest reach the function's BARs by DMA, as far as they are in the guest's memory and
    /// the IOMMU can map them; `None`: nowhere. The guest's only function needs none.
    pub p2p: Option<DmaSpace>,
}
