//! Memory of this process, and the slots that put it into the guest.

use std::fmt;
use std::io;
use std::sync::Arc;

use vm_memory::GuestRegionMmap;
use vm_memory::bitmap::Bitmap;

/// Memory of this process that a device or a guest may read and write at any time.
///
/// # Safety
///
/// While the value lives, the `size()` bytes at `host_address()` are mapped, shared storage, and
/// stay where they are. Both methods always return the same.
///
/// A guest and its devices write to the memory when they like, as vCPUs do. The VMM's own accesses
/// therefore go through raw pointers, volatile or atomic, as those of vm-memory do, and never
/// through a Rust reference.
pub unsafe trait HostMemory: Send + Sync {
    /// The address of the memory in this process, aligned to a page.
    fn host_address(&self) -> *mut u8;
    /// The size in bytes, a multiple of the page size.
    fn size(&self) -> u64;
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
}

/// Puts memory of this process into the guest's physical address space, by two calls of the
/// hypervisor. The library calls them through [`MemorySlot`], which keeps the memory alive and
/// removes it once.
pub trait MemorySlots: Send + Sync {
    /// Makes `memory` appear at the guest physical address `gpa`, page-aligned, and returns a
    /// number of the VMM's choice, which [`unmap`](Self::unmap) is called with.
    ///
    /// # Errors
    ///
    /// The hypervisor's errno: `EEXIST` where the range overlaps another slot, `ENOSPC` where slots
    /// ran out, `EINVAL` where the guest cannot have that address. The guest's accesses to the BAR
    /// then trap into the VMM.
    ///
    /// # Safety
    ///
    /// The memory stays as [`HostMemory`] demands until `unmap` of the same slot succeeded, or the
    /// VM is gone.
    unsafe fn map(&self, gpa: u64, memory: &dyn HostMemory) -> io::Result<u32>;

    /// Removes memory from the guest: the slot `number`, with the same `gpa` and `memory`. Called
    /// until it succeeds.
    ///
    /// # Errors
    ///
    /// The hypervisor's errno: the memory stays in the guest.
    fn unmap(&self, number: u32, gpa: u64, memory: &dyn HostMemory) -> io::Result<()>;
}

impl dyn MemorySlots {
    /// Makes `memory` appear at the guest physical address `gpa`, page-aligned, until the value is
    /// dropped.
    ///
    /// # Errors
    ///
    /// As for [`map`](MemorySlots::map).
    pub fn place(
        self: &Arc<Self>,
        gpa: u64,
        memory: Arc<dyn HostMemory>,
    ) -> io::Result<MemorySlot> {
        MemorySlot::new(self.clone(), gpa, memory)
    }
}

/// Memory that is in the guest's address space. It keeps the memory alive. Dropping it removes the
/// memory from the guest; if the hypervisor refuses that, the memory is leaked rather than freed
/// under the guest, and a line is logged.
pub struct MemorySlot {
    slots: Arc<dyn MemorySlots>,
    number: u32,
    gpa: u64,
    memory: Option<Arc<dyn HostMemory>>,
}

impl MemorySlot {
    /// Makes `memory` appear at the guest physical address `gpa`, page-aligned.
    ///
    /// # Errors
    ///
    /// As for [`MemorySlots::map`].
    pub fn new(
        slots: Arc<dyn MemorySlots>,
        gpa: u64,
        memory: Arc<dyn HostMemory>,
    ) -> io::Result<Self> {
        // SAFETY: the memory is what a `HostMemory` promises as long as it lives. The value holds
        // it until `unmap` succeeds, and leaks it where that never does.
        let number = unsafe { slots.map(gpa, &*memory) }?;
        Ok(Self { slots, number, gpa, memory: Some(memory) })
    }

    /// Removes the memory from the guest. Does nothing if it was removed before.
    ///
    /// # Errors
    ///
    /// As for [`MemorySlots::unmap`]. The memory stays in the guest, and alive: this may be called
    /// again.
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
