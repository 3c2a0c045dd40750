//! Pieces of memory that lie one behind the other, as one.

use std::sync::Arc;

use crate::host::HostMemory;

/// Adjacent pieces of memory, all of which it holds.
pub(crate) struct AdjacentMemory {
    pieces: Vec<Arc<dyn HostMemory>>,
    address: *mut u8,
    size: u64,
}

// SAFETY: the value is pieces that are Send, and the address of the first, of which nothing is tied to a thread.
unsafe impl Send for AdjacentMemory {}
// SAFETY: as for Send; nothing in it changes while it is shared.
unsafe impl Sync for AdjacentMemory {}

// SAFETY: `join` made sure that each piece begins where the one before it ends, and each keeps the promise for its
// own bytes for as long as it lives, which is as long as this.
unsafe impl HostMemory for AdjacentMemory {
    fn host_address(&self) -> *mut u8 {
        self.address
    }

    fn size(&self) -> u64 {
        self.size
    }
}

impl AdjacentMemory {
    /// One piece.
    pub(crate) fn new(piece: Arc<dyn HostMemory>) -> Self {
        Self { address: piece.host_address(), size: piece.size(), pieces: vec![piece] }
    }

    /// Adds a piece that begins where this ends.
    ///
    /// # Errors
    ///
    /// The piece, where it does not.
    pub(crate) fn join(&mut self, piece: Arc<dyn HostMemory>) -> Result<(), Arc<dyn HostMemory>> {
        let end = (self.address.addr() as u64).checked_add(self.size);
        let size = self.size.checked_add(piece.size());
        match size.filter(|_| end == Some(piece.host_address().addr() as u64)) {
            Some(size) => {
                self.size = size;
                self.pieces.push(piece);
                Ok(())
            }
            None => Err(piece),
        }
    }

    /// As memory: the piece itself where it is one.
    pub(crate) fn into_memory(mut self) -> Arc<dyn HostMemory> {
        match self.pieces.pop() {
            Some(only) if self.pieces.is_empty() => only,
            last => {
                self.pieces.extend(last);
                Arc::new(self)
            }
        }
    }
}
