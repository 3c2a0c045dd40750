//! An I/O address space by the rules of type1v2 (drivers/vfio/vfio_iommu_type1.c).

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use super::{Call, Faults, errno, lock};
use crate::address::ByteRange;
use crate::backend::{AddressSpace, IommuInfo};

/// The page size of the IOMMU.
const PAGE: u64 = 4096;

/// An IOMMU and its mappings.
pub struct Iommu {
    pub(super) faults: Arc<Faults>,
    reach: Vec<ByteRange>,
    limit: usize,
    mappings: Mutex<BTreeMap<u64, Mapping>>,
}

struct Mapping {
    range: ByteRange,
    /// Where its memory is in this process.
    host: u64,
}

impl Iommu {
    /// One that reaches 39 bits less the MSI window, with room for 65535 mappings.
    pub fn new(faults: Arc<Faults>) -> Self {
        let reach =
            vec![ByteRange::between(0, 0xfee0_0000), ByteRange::between(0xfef0_0000, 1 << 39)];
        Self { faults, reach, limit: 65535, mappings: Mutex::default() }
    }

    /// With room for so many mappings.
    pub fn with_limit(self, limit: usize) -> Self {
        Self { limit, ..self }
    }

    /// Whether a range can be mapped.
    pub fn reaches(&self, range: ByteRange) -> bool {
        self.reach.iter().any(|reach| reach.contains(range))
    }

    /// The mappings that there are.
    pub fn mappings(&self) -> Vec<ByteRange> {
        lock(&self.mappings).values().map(|mapping| mapping.range).collect()
    }

    /// Where in this process a range begins, and how much of it is in the same mapping.
    pub(super) fn translate(&self, range: ByteRange) -> Option<(u64, u64)> {
        let mappings = lock(&self.mappings);
        let (_, mapping) = mappings.range(..=range.start()).next_back()?;
        let offset = mapping.range.offset_of(range.start())?;
        let size = mapping.range.size().saturating_sub(offset).min(range.size());
        Some((mapping.host.saturating_add(offset), size))
    }
}

impl AddressSpace for Iommu {
    fn info(&self) -> io::Result<IommuInfo> {
        self.faults.pass(Call::IommuInfo)?;
        Ok(IommuInfo {
            iova_ranges: Some(self.reach.clone()),
            dma_avail: u32::try_from(self.limit.saturating_sub(lock(&self.mappings).len())).ok(),
        })
    }

    unsafe fn map(&self, iova: u64, size: u64, host: *mut u8) -> io::Result<()> {
        self.faults.pass(Call::MapDma)?;
        let aligned = [iova, size, host.addr() as u64].iter().all(|value| *value % PAGE == 0);
        let range = ByteRange::new(iova, size).filter(|range| aligned && !range.is_empty());
        let range = range.ok_or_else(|| errno(libc::EINVAL))?;
        let mut mappings = lock(&self.mappings);
        if mappings.values().any(|mapping| mapping.range.overlaps(range)) {
            return Err(errno(libc::EEXIST));
        }
        if mappings.len() >= self.limit {
            return Err(errno(libc::ENOSPC));
        }
        if !self.reaches(range) {
            return Err(errno(libc::EINVAL));
        }
        let host = host.expose_provenance() as u64;
        mappings.insert(iova, Mapping { range, host });
        Ok(())
    }

    fn unmap(&self, iova: u64, size: u64) -> io::Result<()> {
        self.faults.pass(Call::UnmapDma)?;
        let range = ByteRange::new(iova, size).ok_or_else(|| errno(libc::EINVAL))?;
        let mut mappings = lock(&self.mappings);
        // A mapping is ended as it was made; what would bisect one is refused.
        if mappings.get(&iova).map(|mapping| mapping.range) != Some(range) {
            return Err(errno(libc::EINVAL));
        }
        mappings.remove(&iova);
        Ok(())
    }
}
