//! An I/O address space: a container of `vfio-model` with a type1v2 IOMMU.

use std::io;
use std::sync::Arc;

use vfio_bindings::bindings::vfio as sys;
use vfio_model::{Description, Driver, Fd, Kernel, MapDma, PciFunction, System, UnmapDma};

use super::opened::ADDRESS;
use super::{Call, Faults, errno, info_reply};
use crate::address::ByteRange;
use crate::backend::{AddressSpace, IommuInfo};

/// An IOMMU and its mappings.
pub struct Iommu {
    pub(super) faults: Arc<Faults>,
    system: System,
    container: Fd,
}

impl Iommu {
    /// One that reaches 39 bits less the MSI window, with room for 65535 mappings.
    pub fn new(faults: Arc<Faults>) -> Self {
        Self::of(faults, Description::new(Kernel::Linux6_12))
    }

    /// With room for so many mappings.
    pub fn with_limit(self, limit: usize) -> Self {
        let mut description = Description::new(Kernel::Linux6_12);
        description.dma_entries = u32::try_from(limit).unwrap_or(u32::MAX);
        Self::of(self.faults, description)
    }

    fn of(faults: Arc<Faults>, description: Description) -> Self {
        let device = description.device(ADDRESS, 0, Driver::Vfio, PciFunction::default());
        let system = device.build();
        let container = system.open_container();
        // A container without an IOMMU refuses every call, which the test sees.
        let _ = set_iommu(&system, container);
        Self { faults, system, container }
    }

    /// Whether a range can be mapped.
    pub fn reaches(&self, range: ByteRange) -> bool {
        let info = self.get_info().ok();
        let ranges = info.and_then(|info| info.iova_ranges).unwrap_or_default();
        ranges.iter().any(|reach| reach.contains(range))
    }

    /// The mappings that there are.
    pub fn mappings(&self) -> Vec<ByteRange> {
        let mappings = self.system.mappings(self.container).unwrap_or_default();
        let range = |range: &std::ops::Range<u64>| ByteRange::between(range.start, range.end);
        mappings.iter().map(range).collect()
    }

    /// Where in this process a range begins, and how much of it is in the same mapping.
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

fn set_iommu(system: &System, container: Fd) -> io::Result<()> {
    let group = system.open_group(0)?;
    system.set_container(group, container)?;
    system.set_iommu(container, sys::VFIO_TYPE1v2_IOMMU.into())
}

impl AddressSpace for Iommu {
    fn info(&self) -> io::Result<IommuInfo> {
        self.faults.pass(Call::IommuInfo)?;
        self.get_info()
    }

    unsafe fn map(&self, iova: u64, size: u64, host: *mut u8) -> io::Result<()> {
        self.faults.pass(Call::MapDma)?;
        let call = MapDma {
            argsz: MapDma::ARGSZ,
            flags: sys::VFIO_DMA_MAP_FLAG_READ | sys::VFIO_DMA_MAP_FLAG_WRITE,
            vaddr: host.expose_provenance() as u64,
            iova,
            size,
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
