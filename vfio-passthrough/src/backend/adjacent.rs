//! Adjacent pieces of memory, joined to one.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use crate::host::HostMemory;

/// Adjacent pieces of memory as one piece. It holds them all.
pub(crate) struct AdjacentMemory {
    pieces: Vec<Arc<dyn HostMemory>>,
    address: *mut u8,
    size: u64,
}

// SAFETY: the pieces are Send, and the address of the first is not tied to a thread.
unsafe impl Send for AdjacentMemory {}
// SAFETY: the pieces are Sync, and no method changes a shared value.
unsafe impl Sync for AdjacentMemory {}

// SAFETY: `join` checked that each piece begins where the previous one ends. Each piece keeps the
// contract for its own bytes while it lives, and this value holds all pieces.
unsafe impl HostMemory for AdjacentMemory {
    fn host_address(&self) -> *mut u8 {
        self.address
    }

    fn size(&self) -> u64 {
        self.size
    }

    /// The file of the first piece, if the pieces are adjacent in one file too.
    fn file(&self) -> Option<(BorrowedFd<'_>, u64)> {
        let mut pieces = self.pieces.iter();
        let (file, start) = pieces.next()?.file()?;
        let mut end = start.checked_add(self.pieces.first()?.size())?;
        for piece in pieces {
            let (other, offset) = piece.file()?;
            if other.as_raw_fd() != file.as_raw_fd() || offset != end {
                return None;
            }
            end = end.checked_add(piece.size())?;
        }
        Some((file, start))
    }
}

impl AdjacentMemory {
    /// A single piece.
    pub(crate) fn new(piece: Arc<dyn HostMemory>) -> Self {
        Self { address: piece.host_address(), size: piece.size(), pieces: vec![piece] }
    }

    /// Adds a piece that begins where this memory ends.
    ///
    /// # Errors
    ///
    /// Returns the piece if it does not begin there.
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

    /// Converts to memory. A single piece is returned as it is.
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
