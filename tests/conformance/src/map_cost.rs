//! Measures how long the library takes to map guest memory for DMA, and how long a loop of the
//! ioctl takes: in turns, with the same memory, in one run.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use vfio_model::{Fd, MapDma, UnmapDma};
use vfio_passthrough::host::HostMemory;
use vfio_passthrough::{IommuContext, Iova, PciAddress};
use vm_memory::{Bytes, GuestAddress, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress};

use crate::Core;
use crate::linux::Linux;

/// The guest memory of a VMM, below and above the 32-bit hole.
const REGIONS: [(u64, usize); 2] = [(0, 384 << 20), (4 << 30, 128 << 20)];
const ROUNDS: usize = 7;
/// Read and write.
const ACCESS: u32 = 3;
const TYPE1V2: u64 = 3;

/// The medians, in nanoseconds.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The number of bytes mapped.
    pub bytes: usize,
    /// The time of one `VFIO_IOMMU_MAP_DMA` per region.
    pub bare_ns: u128,
    /// The time of the library.
    pub library_ns: u128,
    /// `library_ns` divided by `bare_ns`.
    pub ratio: f64,
}

/// A container without the library.
struct Bare {
    linux: Linux,
    container: Fd,
    _group: Fd,
}

impl Bare {
    fn open(group: u32) -> io::Result<Self> {
        let mut linux = Linux::default();
        let container = linux.open_container()?;
        let _group = linux.open_group(group)?;
        linux.set_container(_group, container)?;
        linux.set_iommu(container, TYPE1V2)?;
        Ok(Self { linux, container, _group })
    }

    fn map(&mut self, memory: &[Arc<GuestRegionMmap>]) -> io::Result<()> {
        memory.iter().try_for_each(|region| {
            let call = MapDma {
                argsz: MapDma::ARGSZ,
                flags: ACCESS,
                vaddr: region.as_ptr().expose_provenance() as u64,
                iova: region.start_addr().0,
                size: region.len(),
            };
            self.linux.map_dma(self.container, &call)
        })
    }

    fn unmap(&mut self, memory: &[Arc<GuestRegionMmap>]) -> io::Result<()> {
        memory.iter().try_for_each(|region| {
            let call = UnmapDma {
                argsz: UnmapDma::ARGSZ,
                flags: 0,
                iova: region.start_addr().0,
                size: region.len(),
            };
            self.linux.unmap_dma(self.container, &call).map(drop)
        })
    }
}

/// Guest memory. Every page was written, so that it exists.
fn memory() -> io::Result<Vec<Arc<GuestRegionMmap>>> {
    let region = |(start, size): (u64, usize)| -> io::Result<_> {
        let region = GuestRegionMmap::from_range(GuestAddress(start), size, None)
            .map_err(io::Error::other)?;
        for page in (0..size as u64).step_by(4096) {
            region.write_obj(1_u8, MemoryRegionAddress(page)).map_err(io::Error::other)?;
        }
        Ok(Arc::new(region))
    };
    REGIONS.into_iter().map(region).collect()
}

/// Measures with two devices of different groups, one per way.
///
/// # Errors
///
/// The error of the call that fails.
pub fn measure(bare: PciAddress, library: PciAddress) -> io::Result<Report> {
    let memory = memory()?;
    let group = vfio_passthrough::backend::sysfs::Sysfs::default().group(bare);
    let mut bare = Bare::open(group.ok_or(io::ErrorKind::NotFound)?)?;
    let container = IommuContext::open().map_err(io::Error::other)?;
    let _device = container.open_device(library).map_err(io::Error::other)?;
    let (mut bare_ns, mut library_ns) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        bare.map(&memory)?;
        bare_ns.push(begin.elapsed().as_nanos());
        bare.unmap(&memory)?;

        let begin = Instant::now();
        let pieces = memory.iter().map(|region| {
            let memory: Arc<dyn HostMemory> = region.clone();
            (Iova(region.start_addr().0), memory)
        });
        let mappings = container.dma().map_all(pieces).map_err(io::Error::other)?;
        library_ns.push(begin.elapsed().as_nanos());
        drop(mappings);
    }
    let (bare_ns, library_ns) = (median(bare_ns), median(library_ns));
    Ok(Report {
        bytes: REGIONS.iter().map(|(_, size)| size).sum(),
        bare_ns,
        library_ns,
        ratio: library_ns as f64 / bare_ns as f64,
    })
}

fn median(mut values: Vec<u128>) -> u128 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}
