//! DMA: mappings of an I/O address space. Each mapping holds the memory that it exposes.
//!
//! A [`Mapping`] keeps its memory alive, and returns it only after the kernel has unmapped it. If
//! the kernel refuses to unmap, the memory is leaked. So safe code cannot cause DMA to freed
//! memory.

mod error;
mod locked;
mod state;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use error::Error;
pub use locked::{LockedMemoryLimit, allow_locked_memory};
use state::State;

use crate::address::{ByteRange, Iova};
use crate::backend::{AddressSpace, AdjacentMemory};
use crate::host::HostMemory;

/// The I/O address space of a guest's devices. A clone is another handle of the same address space.
///
/// It spans the kernel's address spaces that the devices need: each mapping is in all of them or in
/// none. An address space that is added later gets all existing mappings. Without any address
/// space, mappings are recorded for the first one.
#[derive(Clone, Default)]
pub struct DmaSpace {
    state: Arc<Mutex<State>>,
    /// A BAR that cannot be mapped is no reason for a warning.
    is_quiet: bool,
}

impl fmt::Debug for DmaSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaSpace").field("mappings", &self.state().ranges()).finish_non_exhaustive()
    }
}

impl DmaSpace {
    /// A DMA space with one address space of the kernel. An [`IommuContext`](crate::IommuContext)
    /// has its own: [`IommuContext::dma`](crate::IommuContext::dma).
    pub fn new(space: Arc<dyn AddressSpace>) -> Self {
        Self { state: Arc::new(Mutex::new(State::of(space))), is_quiet: false }
    }

    /// The same space, for BARs that need not be mapped: a refusal is logged as information only.
    #[must_use]
    pub fn without_warnings(&self) -> Self {
        Self { state: self.state.clone(), is_quiet: true }
    }

    /// Adds an address space of the kernel, and maps all existing mappings in it.
    ///
    /// # Errors
    ///
    /// [`Error::Map`] for the first mapping that the kernel refused. The address space is then not
    /// added, and nothing stays mapped in it.
    pub fn add(&self, space: Arc<dyn AddressSpace>) -> Result<(), Error> {
        self.state().add(space)
    }

    /// Unmaps all mappings in an address space of the kernel, and removes it. If the kernel refuses
    /// to unmap, the memory is leaked and an error is logged. The mappings stay in the other
    /// address spaces, and are mapped again in the next one that is added.
    pub fn remove(&self, space: &Arc<dyn AddressSpace>) {
        self.state().remove(space);
    }

    /// Removes an address space whose mappings the kernel has removed by itself.
    pub(crate) fn forget(&self, space: &Arc<dyn AddressSpace>) {
        self.state().forget(space);
    }

    /// The ranges that all address spaces can map (`VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE`,
    /// linux/vfio.h). It is the whole 64-bit space if the kernel does not report them (before 5.4).
    /// The ranges can shrink when a group is attached.
    ///
    /// # Errors
    ///
    /// [`Error::Info`] if the kernel does not report them.
    pub fn iova_ranges(&self) -> Result<Vec<ByteRange>, Error> {
        self.state().limits().map(|limits| limits.iova_ranges)
    }

    /// The number of the kernel's address spaces. Each of them pins the memory that is mapped, and
    /// the limit on locked memory counts it for each (vfio_lock_acct): see
    /// [`allow_locked_memory`].
    pub fn address_spaces(&self) -> usize {
        self.state().spaces()
    }

    /// Maps `memory` for the devices at `iova`.
    ///
    /// # Errors
    ///
    /// [`Error::Map`] with the kernel's errno; [`Error::Range`] if the end does not fit in 64 bits.
    pub fn map(&self, iova: Iova, memory: Arc<dyn HostMemory>) -> Result<Mapping, Error> {
        let range = range(iova, &*memory)?;
        self.state().map(range, memory)?;
        Ok(Mapping { space: self.clone(), range, unmapped: false })
    }

    /// Maps all pieces or none. Pieces that are adjacent both in this process and in IOVA become
    /// one mapping, with one ioctl. To unmap a piece alone, map it alone.
    ///
    /// It checks the ranges and the number of mappings before it maps the first piece.
    ///
    /// # Errors
    ///
    /// The errors of [`map`](Self::map): earlier pieces are unmapped. [`Error::OutOfReach`],
    /// [`Error::Full`] and [`Error::Info`]: nothing was mapped.
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
        // `collect` stops at the first error, and drops the mappings made so far: this unmaps them.
        memory.into_iter().map(|(iova, memory)| self.map(iova, memory)).collect()
    }

    /// Logs that a mapping of a BAR was refused, with one warning for all devices.
    pub(crate) fn report_refusal(&self, error: &dyn fmt::Display) {
        if self.is_quiet {
            log::info!("{error}");
        } else if !std::mem::replace(&mut self.state().has_refused, true) {
            log::warn!("{error}");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A poisoned lock is safe to use: the state records each call to the kernel that succeeded.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Joins pieces that are adjacent both in this process and in IOVA.
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

/// Memory that is mapped for devices. It holds the memory. Dropping it unmaps: if the kernel
/// refuses, the memory is leaked and an error is logged.
#[must_use = "dropping a mapping unmaps it"]
#[derive(Debug)]
pub struct Mapping {
    space: DmaSpace,
    range: ByteRange,
    unmapped: bool,
}

impl Mapping {
    /// The I/O virtual addresses.
    pub fn range(&self) -> ByteRange {
        self.range
    }

    /// Unmaps, and returns the memory.
    ///
    /// # Errors
    ///
    /// [`Error::Unmap`]: devices may still access the memory, so it is leaked.
    pub fn unmap(mut self) -> Result<Arc<dyn HostMemory>, Error> {
        self.unmapped = true;
        let mut state = self.space.state();
        state.unmap(self.range).inspect_err(|_| state.leak(self.range))
    }

    /// Unmaps. After a success, later calls do nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Unmap`]: devices may still access the memory, so it is kept. The call can be
    /// repeated.
    pub fn try_unmap(&mut self) -> Result<(), Error> {
        if !self.unmapped {
            self.space.state().unmap(self.range)?;
            self.unmapped = true;
        }
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if !self.unmapped {
            self.space.state().drop_mapping(self.range);
        }
    }
}
