//! Guest memory for devices: mappings of an I/O address space that hold the memory they expose.
//!
//! A [`Mapping`] keeps its memory alive, and gives it back only after the kernel confirmed that no device
//! reaches it any more. Where the kernel refuses to unmap, the memory is leaked: DMA to freed memory cannot
//! be written in safe code.

mod error;
mod locked;
mod state;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use error::Error;
pub use locked::allow_locked_memory;
use state::State;

use crate::address::{ByteRange, Iova};
use crate::backend::{AddressSpace, AdjacentMemory};
use crate::host::HostMemory;

/// The I/O address space of a guest's devices. Cloning gives another handle of the same one.
///
/// Behind it there are as many address spaces of the kernel as the devices need, which are kept in step: what
/// is mapped is mapped in all of them or in none, and one that is added later gets all that is mapped. While
/// there is none, mappings are kept for the first to come.
#[derive(Clone, Default)]
pub struct DmaSpace {
    state: Arc<Mutex<State>>,
}

impl fmt::Debug for DmaSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaSpace").field("mappings", &self.state().ranges()).finish_non_exhaustive()
    }
}

impl DmaSpace {
    /// The mappings of one address space of the kernel. That of a [`IommuContext`](crate::IommuContext) is
    /// [`IommuContext::dma`](crate::IommuContext::dma).
    pub fn new(space: Arc<dyn AddressSpace>) -> Self {
        Self { state: Arc::new(Mutex::new(State::of(space))) }
    }

    /// Adds an address space of the kernel: all that is mapped is mapped in it too, or nothing is.
    ///
    /// # Errors
    ///
    /// [`Error::Map`] for the first mapping that it refused: the space was not added.
    pub fn add(&self, space: Arc<dyn AddressSpace>) -> Result<(), Error> {
        self.state().add(space)
    }

    /// Removes an address space of the kernel, after ending what is mapped in it. What the kernel refuses to
    /// unmap is leaked, with a line in the log. Mappings stay, in the others or for the next one.
    pub fn remove(&self, space: &Arc<dyn AddressSpace>) {
        self.state().remove(space);
    }

    /// The ranges in which all of the address spaces can map: all 64 bits where the kernel does not report it (before
    /// 5.4). Ask after every group was attached.
    ///
    /// # Errors
    ///
    /// [`Error::Info`].
    pub fn iova_ranges(&self) -> Result<Vec<ByteRange>, Error> {
        self.state().limits().map(|limits| limits.iova_ranges)
    }

    /// Lets the devices see `memory` at `iova`.
    ///
    /// # Errors
    ///
    /// [`Error::Map`] with the kernel's errno, [`Error::Range`].
    pub fn map(&self, iova: Iova, memory: Arc<dyn HostMemory>) -> Result<Mapping, Error> {
        let range = range(iova, &*memory)?;
        self.state().map(range, memory)?;
        Ok(Mapping { space: self.clone(), range, ended: false })
    }

    /// Maps all or nothing: after a failure, what was mapped before it is unmapped again. Pieces that are adjacent
    /// here and there are one mapping, and one call: what is to be unmapped by itself is to be mapped by itself.
    ///
    /// # Errors
    ///
    /// As for [`map`](Self::map); [`Error::OutOfReach`] and [`Error::Full`] before anything is mapped.
    pub fn map_all(
        &self,
        memory: impl IntoIterator<Item = (Iova, Arc<dyn HostMemory>)>,
    ) -> Result<Vec<Mapping>, Error> {
        let memory = coalesce(memory.into_iter().collect());
        let limits = self.state().limits()?;
        for (iova, memory) in &memory {
            let (range, iova_ranges) = (range(*iova, &**memory)?, &limits.iova_ranges);
            if !iova_ranges.iter().any(|own| own.contains(range)) {
                let iova_ranges = iova_ranges.clone();
                return Err(Error::OutOfReach { range, iova_ranges });
            }
        }
        let (needed, available) = (memory.len(), limits.free_mappings);
        if needed > available {
            return Err(Error::Full { needed, available });
        }
        // Collecting stops at the first error, and drops, that is unmaps, what it had.
        memory.into_iter().map(|(iova, memory)| self.map(iova, memory)).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves the state as it was between two calls of the kernel, all of which it knows.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Joins what is adjacent both in this process and for the devices.
fn coalesce(mut memory: Vec<(Iova, Arc<dyn HostMemory>)>) -> Vec<(Iova, Arc<dyn HostMemory>)> {
    memory.sort_by_key(|(iova, _)| *iova);
    let mut joined: Vec<(Iova, AdjacentMemory)> = Vec::with_capacity(memory.len());
    for (iova, piece) in memory {
        let before = joined
            .last_mut()
            .filter(|(start, own)| start.0.checked_add(own.size()) == Some(iova.0));
        let alone = match before {
            Some((_, own)) => own.join(piece),
            None => Err(piece),
        };
        if let Err(piece) = alone {
            joined.push((iova, AdjacentMemory::new(piece)));
        }
    }
    let each = joined.into_iter();
    each.map(|(iova, own)| (iova, own.into_memory())).collect()
}

fn range(iova: Iova, memory: &dyn HostMemory) -> Result<ByteRange, Error> {
    let size = memory.size();
    ByteRange::new(iova.0, size).ok_or(Error::Range { iova, size })
}

/// Memory that devices reach. It holds the memory; dropping it ends the mapping.
#[must_use = "dropping a mapping ends it"]
#[derive(Debug)]
pub struct Mapping {
    space: DmaSpace,
    range: ByteRange,
    ended: bool,
}

impl Mapping {
    /// Where the devices see it.
    pub fn range(&self) -> ByteRange {
        self.range
    }

    /// Ends the mapping and gives the memory back.
    ///
    /// # Errors
    ///
    /// [`Error::Unmap`]: devices may still reach the memory, so it is leaked.
    pub fn unmap(mut self) -> Result<Arc<dyn HostMemory>, Error> {
        self.ended = true;
        let mut state = self.space.state();
        state.end(self.range).inspect_err(|_| state.leak(self.range))
    }

    /// Ends the mapping. Once it has ended, this does nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Unmap`]: devices may still reach the memory, which this keeps. It may be called again.
    pub fn end(&mut self) -> Result<(), Error> {
        if !self.ended {
            self.space.state().end(self.range)?;
            self.ended = true;
        }
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if !self.ended {
            self.space.state().remove_mapping(self.range);
        }
    }
}
