//! Memory of this process, and the slots that put it into the guest.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use vm_memory::GuestRegionMmap;
use vm_memory::bitmap::Bitmap;

/// Memory of this process that a device or a guest may read and write at any time.
///
/// # Safety
///
/// While the value lives, the `size()` bytes at `host_address()` are mapped, shared storage, and
/// do not move. Each method always returns the same value.
///
/// vCPUs and devices can write to the memory at any time. So the VMM accesses it only through raw
/// pointers, by volatile or atomic operations like those of vm-memory, and never through a Rust
/// reference.
pub unsafe trait HostMemory: Send + Sync {
    /// The address of the memory in this process, aligned to a page.
    fn host_address(&self) -> *mut u8;
    /// The size in bytes, a multiple of the page size.
    fn size(&self) -> u64;

    /// The file that the memory is a shared mapping of, and the offset of its first byte in the
    /// file. iommufd maps the file then, and not the address (`IOMMU_IOAS_MAP_FILE`, for memfds).
    /// It is `None` for other memory.
    fn file(&self) -> Option<(BorrowedFd<'_>, u64)> {
        None
    }
}

// SAFETY: a region owns its mapping (it holds an `Arc` of the `MmapRegion`, which unmaps when
// dropped and never moves or resizes), and vm-memory accesses it by volatile operations on raw
// pointers only.
unsafe impl<B: Bitmap + Send + Sync> HostMemory for GuestRegionMmap<B> {
    fn host_address(&self) -> *mut u8 {
        self.as_ptr()
    }

    fn size(&self) -> u64 {
        // usize is at most 64 bits wide on every target of Linux.
        (**self).size() as u64
    }

    fn file(&self) -> Option<(BorrowedFd<'_>, u64)> {
        // A private mapping of a file has other contents than the file.
        let shared = self.flags() & libc::MAP_SHARED != 0;
        let file = self.file_offset().filter(|_| shared)?;
        Some((file.file().as_fd(), file.start()))
    }
}

/// Puts memory of this process into the guest's physical address space. The library calls both
/// methods through [`MemorySlot`], which keeps the memory alive and removes it once.
pub trait MemorySlots: Send + Sync {
    /// Places `memory` at the page-aligned guest physical address `gpa`. Returns a number that the
    /// VMM chooses; [`unmap`](Self::unmap) gets the same number.
    ///
    /// # Errors
    ///
    /// The hypervisor's errno: `EEXIST` if the range overlaps another slot, `ENOSPC` if no slot is
    /// free, `EINVAL` if the guest cannot have that address. The guest's accesses to the BAR then
    /// trap into the VMM.
    ///
    /// # Safety
    ///
    /// The memory fulfils the contract of [`HostMemory`] until `unmap` of the slot has succeeded,
    /// or until the VM no longer exists.
    unsafe fn map(&self, gpa: u64, memory: &dyn HostMemory) -> io::Result<u32>;

    /// Removes the slot `number` from the guest. `gpa` and `memory` are those of
    /// [`map`](Self::map). The call can be repeated after a failure.
    ///
    /// # Errors
    ///
    /// The hypervisor's errno: the memory stays in the guest.
    fn unmap(&self, number: u32, gpa: u64, memory: &dyn HostMemory) -> io::Result<()>;
}

impl dyn MemorySlots {
    /// Places `memory` at the page-aligned guest physical address `gpa`, until the value is
    /// dropped.
    ///
    /// # Errors
    ///
    /// The error of [`map`](MemorySlots::map).
    pub fn place(
        self: &Arc<Self>,
        gpa: u64,
        memory: Arc<dyn HostMemory>,
    ) -> io::Result<MemorySlot> {
        MemorySlot::new(self.clone(), gpa, memory)
    }
}

/// Memory that is in the guest's address space. The value keeps the memory alive. Dropping it
/// removes the memory from the guest. If the hypervisor refuses to remove it, the memory is leaked,
/// so that the guest cannot access freed memory, and an error is logged.
pub struct MemorySlot {
    slots: Arc<dyn MemorySlots>,
    number: u32,
    gpa: u64,
    memory: Option<Arc<dyn HostMemory>>,
}

impl MemorySlot {
    /// Places `memory` at the page-aligned guest physical address `gpa`.
    ///
    /// # Errors
    ///
    /// The error of [`MemorySlots::map`].
    pub fn new(
        slots: Arc<dyn MemorySlots>,
        gpa: u64,
        memory: Arc<dyn HostMemory>,
    ) -> io::Result<Self> {
        // SAFETY: the memory fulfils the contract of `HostMemory` while it lives. The value holds
        // it until `unmap` succeeds, and leaks it if `unmap` never succeeds.
        let number = unsafe { slots.map(gpa, &*memory) }?;
        Ok(Self { slots, number, gpa, memory: Some(memory) })
    }

    /// Removes the memory from the guest. After a success, later calls do nothing.
    ///
    /// # Errors
    ///
    /// The error of [`MemorySlots::unmap`]. The memory stays in the guest, and it stays alive. The
    /// call can be repeated.
    pub fn remove(&mut self) -> io::Result<()> {
        if let Some(memory) = &self.memory {
            self.slots.unmap(self.number, self.gpa, &**memory)?;
            self.memory = None;
        }
        Ok(())
    }
}

impl fmt::Debug for MemorySlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemorySlot")
            .field("number", &self.number)
            .field("gpa", &format_args!("{:#x}", self.gpa))
            .field("size", &self.memory.as_ref().map(|memory| memory.size()))
            .finish_non_exhaustive()
    }
}

impl Drop for MemorySlot {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            let (number, gpa) = (self.number, self.gpa);
            log::error!("the slot at {gpa:#x}, number {number}, stays with its memory: {error}");
            #[expect(clippy::mem_forget, reason = "a failed undo leaks, it never frees")]
            std::mem::forget(self.memory.take());
        }
    }
}
