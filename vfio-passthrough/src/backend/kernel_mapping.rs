//! A DMA mapping of the kernel: one map call, which the drop undoes.

use std::io;
use std::mem;
use std::sync::Arc;

use super::address_space::AddressSpace;
use crate::address::ByteRange;
use crate::host::HostMemory;

/// Memory that is mapped at a range of I/O virtual addresses.
pub(crate) struct KernelMapping {
    space: Arc<dyn AddressSpace>,
    range: ByteRange,
    /// `None` after the memory was unmapped.
    memory: Option<Arc<dyn HostMemory>>,
}

impl KernelMapping {
    /// Maps `memory` at `range`.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the sizes differ, or the errno of [`AddressSpace::map`].
    pub(crate) fn new(
        space: Arc<dyn AddressSpace>,
        range: ByteRange,
        memory: Arc<dyn HostMemory>,
    ) -> io::Result<Self> {
        if range.size() != memory.size() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        // SAFETY: `HostMemory` guarantees that the memory stays mapped and is used as `map`
        // requires while the value lives. The guard made here holds it until `unmap` succeeded, or
        // forever.
        unsafe { space.map(range.start(), &*memory) }?;
        Ok(Self { space, range, memory: Some(memory) })
    }

    /// Whether this is a mapping in `space`.
    pub(crate) fn is_in(&self, space: &Arc<dyn AddressSpace>) -> bool {
        Arc::ptr_eq(&self.space, space)
    }

    /// Unmaps, and drops the memory. After a success, later calls do nothing.
    ///
    /// # Errors
    ///
    /// The kernel's errno. The mapping stays and keeps the memory. The call can be repeated.
    pub(crate) fn unmap(&mut self) -> io::Result<()> {
        if self.memory.is_some() {
            self.space.unmap(self.range.start(), self.range.size())?;
            self.memory = None;
        }
        Ok(())
    }

    /// Drops the memory of a mapping that the kernel has removed by itself.
    pub(crate) fn forget_removed(&mut self) {
        self.memory = None;
    }

    /// Leaks the memory if it is still mapped: devices may write to it until this process ends.
    pub(crate) fn leak(mut self) {
        self.forget();
    }

    fn forget(&mut self) {
        #[expect(clippy::mem_forget, reason = "a failed undo leaks, it never frees")]
        mem::forget(self.memory.take());
    }
}

impl Drop for KernelMapping {
    fn drop(&mut self) {
        if let Err(error) = self.unmap() {
            log::error!("cannot unmap {} from DMA: {error}; its memory is leaked", self.range);
            self.forget();
        }
    }
}
