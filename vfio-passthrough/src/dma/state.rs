//! What is mapped, and in which address spaces of the kernel.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::Error;
use crate::address::ByteRange;
use crate::backend::{AddressSpace, KernelMapping};
use crate::host::HostMemory;

/// Address spaces that are kept in step.
#[derive(Default)]
pub(super) struct State {
    spaces: Vec<Arc<dyn AddressSpace>>,
    /// By their start.
    mappings: BTreeMap<u64, MappedMemory>,
}

/// What all of the address spaces can map.
pub(super) struct Limits {
    pub iova_ranges: Vec<ByteRange>,
    /// The number of further mappings.
    pub free_mappings: usize,
}

/// Memory at its place, with a guard for each address space.
struct MappedMemory {
    range: ByteRange,
    memory: Arc<dyn HostMemory>,
    guards: Vec<KernelMapping>,
}

impl State {
    pub fn of(space: Arc<dyn AddressSpace>) -> Self {
        Self { spaces: vec![space], mappings: BTreeMap::new() }
    }

    pub fn add(&mut self, space: Arc<dyn AddressSpace>) -> Result<(), Error> {
        let entries = self.mappings.values();
        let all = entries.map(|entry| map_in(&space, entry.range, &entry.memory));
        // Collecting stops at the first error, and drops, that is unmaps, what it had.
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

    /// What is mapped.
    pub fn ranges(&self) -> Vec<ByteRange> {
        self.mappings.values().map(|entry| entry.range).collect()
    }

    /// What all of the address spaces can map.
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
        // The kernel's rule, which must hold without it too: there may be no address space now.
        if self.mappings.values().any(|entry| entry.range.overlaps(range)) {
            let source = io::Error::from_raw_os_error(libc::EEXIST);
            return Err(Error::Map { range, source });
        }
        let spaces = self.spaces.iter();
        let guards = spaces.map(|space| map_in(space, range, &memory)).collect::<Result<_, _>>()?;
        let entry = MappedMemory { range, memory, guards };
        self.mappings.insert(range.start(), entry);
        Ok(())
    }

    /// Ends a mapping everywhere, whatever fails, and gives its memory back where nothing did. Else it is still
    /// there.
    pub fn end(&mut self, range: ByteRange) -> Result<Arc<dyn HostMemory>, Error> {
        let failed = |source| Error::Unmap { range, source };
        let entry = self.mappings.get_mut(&range.start());
        // A mapping ends once, so it is there.
        let entry = entry.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        let ended: Vec<io::Result<()>> = entry.guards.iter_mut().map(KernelMapping::end).collect();
        ended.into_iter().collect::<io::Result<()>>().map_err(failed)?;
        let memory = entry.memory.clone();
        self.mappings.remove(&range.start());
        Ok(memory)
    }

    /// Leaks the memory of a mapping, wherever it has not ended.
    pub fn leak(&mut self, range: ByteRange) {
        let entry = self.mappings.remove(&range.start());
        let guards = entry.map(|entry| entry.guards).unwrap_or_default();
        guards.into_iter().for_each(KernelMapping::leak);
    }

    /// Ends a mapping everywhere; what fails is logged, and leaked.
    pub fn remove_mapping(&mut self, range: ByteRange) {
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

/// What is in ranges of both.
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
        fn what_is_common_is_in_a_range_of_each(one in ranges(), other in ranges()) {
            let both = intersection(&one, &other);
            for byte in 0..64 {
                let is_in = |ranges: &[ByteRange]| ranges.iter().any(|range| range.offset_of(byte).is_some());
                prop_assert_eq!(is_in(&both), is_in(&one) && is_in(&other), "byte {}", byte);
            }
        }
    }
}
