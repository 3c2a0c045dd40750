//! One DMA mapping: the side effect of one map call, undone by its drop.

use std::io;
use std::mem;
use std::sync::Arc;

use super::AddressSpace;
use crate::address::ByteRange;
use crate::host::HostMemory;

/// Memory that devices reach at a range of I/O virtual addresses.
pub(crate) struct KernelMapping {
    space: Arc<dyn AddressSpace>,
    range: ByteRange,
    /// `None` once the mapping has ended.
    memory: Option<Arc<dyn HostMemory>>,
}

impl KernelMapping {
    /// Maps `memory` at `range`, which has its size.
    pub(crate) fn new(
        space: Arc<dyn AddressSpace>,
        range: ByteRange,
        memory: Arc<dyn HostMemory>,
    ) -> io::Result<Self> {
        if range.size() != memory.size() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        // SAFETY: as `HostMemory` promises, the memory stays and is used as `map` demands while it lives, and
        // the value made here holds it until `unmap` succeeded, or for ever.
        unsafe { space.map(range.start(), range.size(), memory.host_address()) }?;
        Ok(Self { space, range, memory: Some(memory) })
    }

    /// Whether this is a mapping of `space`.
    pub(crate) fn is_in(&self, space: &Arc<dyn AddressSpace>) -> bool {
        Arc::ptr_eq(&self.space, space)
    }

    /// Ends the mapping and lets go of the memory. Once it has ended, this does nothing.
    ///
    /// # Errors
    ///
    /// The kernel's errno. The mapping stays, and keeps the memory: this may be called again.
    pub(crate) fn end(&mut self) -> io::Result<()> {
        if self.memory.is_some() {
            self.space.unmap(self.range.start(), self.range.size())?;
            self.memory = None;
        }
        Ok(())
    }

    /// Devices may write there for as long as this process lives: nothing else ever lives at that place.
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
        if let Err(error) = self.end() {
            log::error!("cannot unmap {} from DMA: {error}; its memory is leaked", self.range);
            self.forget();
        }
    }
}
