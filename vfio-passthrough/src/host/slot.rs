//! The guard of a memory slot.

use std::fmt;
use std::io;
use std::sync::Arc;

use super::{HostMemory, MemorySlots};

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
        // SAFETY: the memory is what a `HostMemory` promises as long as it lives. The value holds it
        // until `unmap` succeeds, and leaks it where that never does.
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
