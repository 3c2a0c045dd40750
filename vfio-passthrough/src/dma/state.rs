//! The state of a DMA space: its mappings, and the kernel's address spaces that have them.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::Error;
use crate::address::ByteRange;
use crate::backend::{AddressSpace, KernelMapping};
use crate::host::HostMemory;

/// Address spaces that all have the same mappings.
#[derive(Default)]
pub(super) struct State {
    spaces: Vec<Arc<dyn AddressSpace>>,
    /// Keyed by the start of the range.
    mappings: BTreeMap<u64, MappedMemory>,
    /// A mapping of a BAR was refused.
    pub has_refused: bool,
}

/// The limits of all address spaces together.
pub(super) struct Limits {
    pub iova_ranges: Vec<ByteRange>,
    /// The number of mappings that can be added.
    pub free_mappings: usize,
}

/// A mapping, with a guard for each address space.
struct MappedMemory {
    range: ByteRange,
    memory: Arc<dyn HostMemory>,
    guards: Vec<KernelMapping>,
}

impl State {
    pub fn of(space: Arc<dyn AddressSpace>) -> Self {
        Self { spaces: vec![space], ..Self::default() }
    }

    pub fn add(&mut self, space: Arc<dyn AddressSpace>) -> Result<(), Error> {
        let entries = self.mappings.values();
        let all = entries.map(|entry| map_in(&space, entry.range, &entry.memory));
        // `collect` stops at the first error, and drops the guards made so far: this unmaps.
        let all = all.collect::<Result<Vec<_>, _>>()?;
        let entries = self.mappings.values_mut();
        entries.zip(all).for_each(|(entry, own)| entry.guards.push(own));
        self.spaces.push(space);
        Ok(())
    }

    pub fn remove(&mut self, space: &Arc<dyn AddressSpace>) {
        for entry in self.mappings.values_mut() {
            entry.guards.retain(|own| !own.is_in(space));
        }
        self.spaces.retain(|own| !Arc::ptr_eq(own, space));
    }

    /// Removes an address space whose mappings the kernel has removed by itself.
    pub fn forget(&mut self, space: &Arc<dyn AddressSpace>) {
        let guards = self.mappings.values_mut().flat_map(|entry| &mut entry.guards);
        guards.filter(|own| own.is_in(space)).for_each(KernelMapping::forget_removed);
        self.remove(space);
    }

    /// The number of address spaces.
    pub fn spaces(&self) -> usize {
        self.spaces.len()
    }

    /// The ranges of all mappings.
    pub fn ranges(&self) -> Vec<ByteRange> {
        self.mappings.values().map(|entry| entry.range).collect()
    }

    /// The limits of all address spaces together.
    pub fn limits(&self) -> Result<Limits, Error> {
        let all = ByteRange::between(0, u64::MAX);
        let mut limits = Limits { iova_ranges: vec![all], free_mappings: usize::MAX };
        for space in &self.spaces {
            let info = space.info().map_err(Error::Info)?;
            if let Some(own) = info.iova_ranges {
                limits.iova_ranges = intersection(&limits.iova_ranges, &own);
            }
            if let Some(own) = info.dma_avail {
                let own = usize::try_from(own).unwrap_or(usize::MAX);
                limits.free_mappings = limits.free_mappings.min(own);
            }
        }
        Ok(limits)
    }

    pub fn map(&mut self, range: ByteRange, memory: Arc<dyn HostMemory>) -> Result<(), Error> {
        // The kernel has this rule too, but there may be no address space now.
        if self.overlaps(range) {
            let source = io::Error::from_raw_os_error(libc::EEXIST);
            return Err(Error::Map { range, source });
        }
        let spaces = self.spaces.iter();
        let guards = spaces.map(|space| map_in(space, range, &memory)).collect::<Result<_, _>>()?;
        let entry = MappedMemory { range, memory, guards };
        self.mappings.insert(range.start(), entry);
        Ok(())
    }

    /// Whether a mapping overlaps the range. No two mappings do, so the last one that begins before
    /// the end of the range does, or none.
    fn overlaps(&self, range: ByteRange) -> bool {
        let before = self.mappings.range(..range.end()).next_back();
        before.is_some_and(|(_, entry)| entry.range.overlaps(range))
    }

    /// Unmaps in each address space, and returns the memory if all of them succeeded. Otherwise the
    /// mapping stays, and a later call retries the address spaces that failed.
    pub fn unmap(&mut self, range: ByteRange) -> Result<Arc<dyn HostMemory>, Error> {
        let failed = |source| Error::Unmap { range, source };
        let entry = self.mappings.get_mut(&range.start());
        // A `Mapping` calls this only while the state has its entry.
        let entry = entry.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        let results: Vec<io::Result<()>> =
            entry.guards.iter_mut().map(KernelMapping::unmap).collect();
        results.into_iter().collect::<io::Result<()>>().map_err(failed)?;
        let memory = entry.memory.clone();
        self.mappings.remove(&range.start());
        Ok(memory)
    }

    /// Removes a mapping, and leaks its memory if an address space still maps it.
    pub fn leak(&mut self, range: ByteRange) {
        let entry = self.mappings.remove(&range.start());
        let guards = entry.map(|entry| entry.guards).unwrap_or_default();
        guards.into_iter().for_each(KernelMapping::leak);
    }

    /// Removes a mapping by dropping its guards. A failure is logged, and the memory is leaked.
    pub fn drop_mapping(&mut self, range: ByteRange) {
        self.mappings.remove(&range.start());
    }
}

fn map_in(
    space: &Arc<dyn AddressSpace>,
    range: ByteRange,
    memory: &Arc<dyn HostMemory>,
) -> Result<KernelMapping, Error> {
    KernelMapping::new(space.clone(), range, memory.clone())
        .map_err(|source| Error::Map { range, source })
}

/// The ranges that are in both lists.
fn intersection(one: &[ByteRange], other: &[ByteRange]) -> Vec<ByteRange> {
    let pairs = one.iter().flat_map(|one| other.iter().map(move |other| (one, other)));
    let both = pairs.map(|(one, other)| {
        ByteRange::between(one.start().max(other.start()), one.end().min(other.end()))
    });
    both.filter(|range| !range.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ranges() -> impl Strategy<Value = Vec<ByteRange>> {
        let range = (0..64_u64, 0..64_u64).prop_map(|(start, end)| ByteRange::between(start, end));
        prop::collection::vec(range, 0..4)
    }

    proptest! {
        #[test]
        fn a_byte_is_in_the_intersection_if_it_is_in_both(one in ranges(), other in ranges()) {
            let both = intersection(&one, &other);
            for byte in 0..64 {
                let has_byte = |range: &ByteRange| range.offset_of(byte).is_some();
                let is_in = |ranges: &[ByteRange]| ranges.iter().any(has_byte);
                prop_assert_eq!(is_in(&both), is_in(&one) && is_in(&other), "byte {}", byte);
            }
        }
    }
}
