//! Measures how long the kernel takes to map guest memory for DMA, and to unmap it: by
//! `VFIO_IOMMU_MAP_DMA`, `IOMMU_IOAS_MAP` and `IOMMU_IOAS_MAP_FILE`, with the same memory.

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd as _};
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use vfio_model::Fd;
use vfio_passthrough::host::HostMemory;
use vfio_passthrough::{IommuContext, Iova, PciAddress};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestRegionMmap, MemoryRegionAddress};

use crate::Core as _;
use crate::linux::Linux;

/// The address of the memory: above the MSI window of a PC.
const IOVA: u64 = 4 << 30;
const ROUNDS: usize = 3;

/// The times of one call for one size, in nanoseconds; the medians of some rounds.
#[derive(Debug, Serialize)]
pub struct Row {
    /// The ioctl.
    pub call: &'static str,
    /// The size of the memory in bytes.
    pub bytes: u64,
    /// The time of the ioctl; `None` if the kernel does not have it.
    pub map_ns: Option<u128>,
    /// The time of its undo.
    pub unmap_ns: Option<u128>,
}

/// Memory whose file the library does not see, so that it maps the address.
struct WithoutFile(Arc<GuestRegionMmap>);

// SAFETY: both methods are those of a region, which this value holds.
unsafe impl HostMemory for WithoutFile {
    fn host_address(&self) -> *mut u8 {
        HostMemory::host_address(&*self.0)
    }

    fn size(&self) -> u64 {
        HostMemory::size(&*self.0)
    }

    fn file(&self) -> Option<(BorrowedFd<'_>, u64)> {
        None
    }
}

/// Memory of a memfd, as `vmm` has it. Every page exists.
fn memory(bytes: u64) -> io::Result<Arc<GuestRegionMmap>> {
    let Fd(fd) = Linux::default().open_memory(bytes)?;
    // SAFETY: the fd was made just now, and nothing else owns it.
    let file = unsafe { File::from_raw_fd(fd) };
    let size = usize::try_from(bytes).map_err(io::Error::other)?;
    let region =
        GuestRegionMmap::from_range(GuestAddress(IOVA), size, Some(FileOffset::new(file, 0)));
    let region = Arc::new(region.map_err(io::Error::other)?);
    for page in (0..bytes).step_by(4096) {
        region.write_obj(1_u8, MemoryRegionAddress(page)).map_err(io::Error::other)?;
    }
    Ok(region)
}

/// An open device, and how its memory is mapped.
struct Way {
    call: &'static str,
    context: Arc<IommuContext>,
    by_file: bool,
}

impl Way {
    fn measure(&self, memory: &Arc<GuestRegionMmap>) -> io::Result<Row> {
        let (mut map_ns, mut unmap_ns) = (Vec::new(), Vec::new());
        let by_address = || self.context.calls().ioas_map.value();
        let before = by_address();
        for _ in 0..ROUNDS {
            let memory: Arc<dyn HostMemory> = match self.by_file {
                true => memory.clone(),
                false => Arc::new(WithoutFile(memory.clone())),
            };
            let begin = Instant::now();
            let mapping = self.context.dma().map(Iova(IOVA), memory).map_err(io::Error::other)?;
            map_ns.push(begin.elapsed().as_nanos());
            let begin = Instant::now();
            mapping.unmap().map_err(io::Error::other)?;
            unmap_ns.push(begin.elapsed().as_nanos());
        }
        // A kernel without the call mapped the address.
        let is_missing = self.by_file && by_address() != before;
        let time = |values| (!is_missing).then(|| median(values));
        let (call, bytes) = (self.call, HostMemory::size(&**memory));
        Ok(Row { call, bytes, map_ns: time(map_ns), unmap_ns: time(unmap_ns) })
    }
}

/// Measures sizes in GiB with two devices of different groups, one for each interface.
///
/// # Errors
///
/// The error of the call that fails.
pub fn measure(type1: PciAddress, iommufd: PciAddress, gibs: &[u64]) -> io::Result<Vec<Row>> {
    let [groups, ioas] = [IommuContext::open(), IommuContext::open_iommufd()];
    let groups = Arc::new(groups.map_err(io::Error::other)?);
    let ioas = Arc::new(ioas.map_err(io::Error::other)?);
    let _devices = [groups.open_device(type1)?, ioas.open_device(iommufd)?];
    let way = |call, context: &Arc<IommuContext>, by_file| Way {
        call,
        context: context.clone(),
        by_file,
    };
    let ways = [
        way("VFIO_IOMMU_MAP_DMA", &groups, false),
        way("IOMMU_IOAS_MAP", &ioas, false),
        way("IOMMU_IOAS_MAP_FILE", &ioas, true),
    ];
    let mut rows = Vec::new();
    for gib in gibs {
        let memory = memory(gib << 30)?;
        rows.extend(ways.iter().map(|way| way.measure(&memory)).collect::<io::Result<Vec<_>>>()?);
    }
    Ok(rows)
}

fn median(mut values: Vec<u128>) -> u128 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}
