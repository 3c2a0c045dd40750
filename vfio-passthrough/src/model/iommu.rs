//! An I/O address space: a container of `vfio-model` with a type1v2 IOMMU.

use std::io;
use std::sync::Arc;

use vfio_bindings::bindings::vfio as sys;
use vfio_model::{Description, Driver, Fd, Kernel, MapDma, PciFunction, System, UnmapDma};

use super::faults::{Call, Faults, errno};
use super::opened::{ADDRESS, info_reply, open_type1};
use crate::address::ByteRange;
use crate::backend::{AddressSpace, IommuInfo};
use crate::host::HostMemory;

/// An IOMMU and its mappings.
#[derive(Debug)]
pub struct Iommu {
    pub(super) faults: Arc<Faults>,
    description: Description,
    system: System,
    container: Fd,
}

impl Iommu {
    /// An IOMMU that translates 39 bits without the MSI window, with at most 65535 mappings.
    pub fn new(faults: Arc<Faults>) -> Self {
        Self::of(faults, Description::new(Kernel::Linux6_12))
    }

    /// Limits the number of mappings.
    pub fn with_limit(mut self, limit: usize) -> Self {
        self.description.dma_entries = u32::try_from(limit).unwrap_or(u32::MAX);
        Self::of(self.faults, self.description)
    }

    /// Makes it translate this number of bits, at most 63, without the MSI window.
    pub fn with_address_bits(mut self, bits: u32) -> Self {
        let end = 1_u64.checked_shl(bits).unwrap_or(u64::MAX);
        let last = self.description.iova_ranges.last_mut();
        last.into_iter().for_each(|range| range.end = end);
        Self::of(self.faults, self.description)
    }

    fn of(faults: Arc<Faults>, description: Description) -> Self {
        let device = PciFunction::default();
        let system = description.clone().device(ADDRESS, 0, Driver::Vfio, device).build();
        // Every call on the fd -1 fails, which the test notices.
        let container = open_type1(&system, 0).map_or(Fd(-1), |(container, _)| container);
        Self { faults, description, system, container }
    }

    /// Whether the IOMMU can translate a range.
    pub fn reaches(&self, range: ByteRange) -> bool {
        let info = self.get_info().ok();
        let ranges = info.and_then(|info| info.iova_ranges).unwrap_or_default();
        ranges.iter().any(|usable| usable.contains(range))
    }

    /// The mappings, in order.
    pub fn mappings(&self) -> Vec<ByteRange> {
        let mappings = self.system.mappings(self.container).unwrap_or_default();
        let range = |range: &std::ops::Range<u64>| ByteRange::between(range.start, range.end);
        mappings.iter().map(range).collect()
    }

    /// The address in this process of the range's start, and how much of the range the same mapping
    /// holds.
    pub(super) fn translate(&self, range: ByteRange) -> Option<(u64, u64)> {
        let found = self.system.translate(self.container, range.start());
        let (at, left) = found.ok().flatten()?;
        Some((at, left.min(range.size())))
    }

    fn get_info(&self) -> io::Result<IommuInfo> {
        let reply = info_reply(0, |reply| self.system.iommu_info(self.container, reply))?;
        Ok(IommuInfo::from_reply(&reply))
    }
}

impl AddressSpace for Iommu {
    fn info(&self) -> io::Result<IommuInfo> {
        self.faults.pass(Call::IommuInfo)?;
        self.get_info()
    }

    unsafe fn map(&self, iova: u64, memory: &dyn HostMemory) -> io::Result<()> {
        self.faults.pass(Call::MapDma)?;
        let call = MapDma {
            argsz: MapDma::ARGSZ,
            flags: sys::VFIO_DMA_MAP_FLAG_READ | sys::VFIO_DMA_MAP_FLAG_WRITE,
            vaddr: memory.host_address().expose_provenance() as u64,
            iova,
            size: memory.size(),
        };
        self.system.map_dma(self.container, &call)
    }

    fn unmap(&self, iova: u64, size: u64) -> io::Result<()> {
        self.faults.pass(Call::UnmapDma)?;
        let call = UnmapDma { argsz: UnmapDma::ARGSZ, flags: 0, iova, size };
        match self.system.unmap_dma(self.container, &call)? {
            unmapped if unmapped == size => Ok(()),
            _ => Err(errno(libc::EINVAL)),
        }
    }
}
