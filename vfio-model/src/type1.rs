//! Type1 IOMMUs: mappings from IOVA to a process's memory (drivers/vfio/vfio_iommu_type1.c).

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use vfio_bindings::bindings::vfio as sys;

use crate::describe::Description;
use crate::errno::errno;
use crate::info::{Capabilities, Reply};
use crate::kernel::Kernel;
use crate::process::Process;
use crate::ranges;

/// `struct vfio_iommu_type1_dma_map`, for [`System::map_dma`](crate::System::map_dma).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapDma {
    /// The size of the struct as the caller states it; [`MapDma::ARGSZ`] is right.
    pub argsz: u32,
    /// `VFIO_DMA_MAP_FLAG_*`.
    pub flags: u32,
    /// The address in the process's memory.
    pub vaddr: u64,
    /// The address that the device uses.
    pub iova: u64,
    /// The size in bytes.
    pub size: u64,
}

impl MapDma {
    /// The size of the struct.
    pub const ARGSZ: u32 = 32;
}

/// `struct vfio_iommu_type1_dma_unmap`, for [`System::unmap_dma`](crate::System::unmap_dma).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnmapDma {
    /// The size of the struct as the caller states it; [`UnmapDma::ARGSZ`] is right.
    pub argsz: u32,
    /// `VFIO_DMA_UNMAP_FLAG_*`.
    pub flags: u32,
    /// The address that the device uses.
    pub iova: u64,
    /// The size in bytes.
    pub size: u64,
}

impl UnmapDma {
    /// The size of the struct.
    pub const ARGSZ: u32 = 24;
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapping {
    pub size: u64,
    /// How many bytes are locked.
    locked: u64,
    /// The address in the process's memory.
    pub vaddr: u64,
    /// `VFIO_DMA_MAP_FLAG_READ` and `VFIO_DMA_MAP_FLAG_WRITE`.
    pub flags: u32,
    /// `vaddr` was invalidated (`VFIO_DMA_UNMAP_FLAG_VADDR`) and not renewed since.
    without_vaddr: bool,
}

/// The mappings of one container.
#[derive(Debug)]
pub(crate) struct Type1 {
    kernel: Kernel,
    /// Version 2 or nesting: an unmap must not bisect a mapping.
    pub v2: bool,
    page_sizes: u64,
    limit: u32,
    mappings: BTreeMap<u64, Mapping>,
    /// The pages that drivers have pinned, by their numbers in IOVA, with their counts.
    pub pins: BTreeMap<u64, u32>,
    pub tracks_dirty_pages: bool,
}

/// The end of a range in the kernel's arithmetic, where 2^64 is 0.
fn end(start: u64, size: u64) -> u64 {
    start.wrapping_add(size)
}

fn wraps(start: u64, size: u64) -> bool {
    end(start, size).wrapping_sub(1) < start
}

impl Type1 {
    pub fn new(description: &Description, kind: u64) -> Self {
        Self {
            kernel: description.kernel,
            v2: kind != u64::from(sys::VFIO_TYPE1_IOMMU),
            page_sizes: description.page_sizes,
            limit: description.dma_entries,
            mappings: BTreeMap::new(),
            pins: BTreeMap::new(),
            tracks_dirty_pages: false,
        }
    }

    /// The mappings, in order.
    pub fn mappings(&self) -> Vec<Range<u64>> {
        let range = |(iova, mapping): (&u64, &Mapping)| ranges::sized(*iova, mapping.size);
        self.mappings.iter().filter_map(range).collect()
    }

    /// Whether the `vaddr` of a mapping was invalidated.
    pub fn lacks_vaddr(&self) -> bool {
        self.mappings.values().any(|mapping| mapping.without_vaddr)
    }

    fn misaligned(&self, value: u64) -> bool {
        value & self.page_mask() != 0
    }

    /// The bits below the smallest page.
    pub fn page_mask(&self) -> u64 {
        (self.page_sizes & self.page_sizes.wrapping_neg()).saturating_sub(1)
    }

    /// The lowest mapping that overlaps a range. Before 7.3 a mapping or range that ends at 2^64
    /// overlaps nothing (`vfio_find_dma`).
    pub fn first_in(&self, iova: u64, size: u64) -> Option<(u64, Mapping)> {
        let before = self.mappings.range(..=iova).next_back();
        let over = before.filter(|(start, mapping)| self.is_before(iova, **start, mapping.size));
        let after = || self.mappings.range(iova..).next();
        over.or_else(after)
            .map(|(start, mapping)| (*start, *mapping))
            .filter(|(start, _)| self.is_before(*start, iova, size))
    }

    /// Whether an address is before the end of a range.
    fn is_before(&self, address: u64, start: u64, size: u64) -> bool {
        match self.kernel.checks_overflow() {
            true => address <= end(start, size).wrapping_sub(1),
            false => address < end(start, size),
        }
    }

    /// The process's address for an IOVA, and how many bytes the mapping has from there on.
    pub fn translate(&self, iova: u64) -> Option<(u64, u64)> {
        let (start, mapping) = self.first_in(iova, 1)?;
        let offset = iova.wrapping_sub(start);
        Some((mapping.vaddr.wrapping_add(offset), mapping.size.wrapping_sub(offset)))
    }

    /// `vfio_dma_do_map`. The IOMMU can translate `iova_ranges`.
    pub fn map(
        &mut self,
        call: &MapDma,
        iova_ranges: &[Range<u64>],
        process: &mut Process,
    ) -> io::Result<()> {
        let (read, write) = (sys::VFIO_DMA_MAP_FLAG_READ, sys::VFIO_DMA_MAP_FLAG_WRITE);
        let vaddr_flag = match self.kernel.has_unmap_flags() {
            true => sys::VFIO_DMA_MAP_FLAG_VADDR,
            false => 0,
        };
        let renews = call.flags & vaddr_flag != 0;
        let access = call.flags & (read | write) != 0;
        let is_known = call.flags & !(read | write | vaddr_flag) == 0;
        let misaligned = [call.size, call.iova, call.vaddr].iter().any(|v| self.misaligned(*v));
        if call.argsz < MapDma::ARGSZ || !is_known || call.size == 0 {
            return Err(errno(libc::EINVAL));
        }
        let wraps = wraps(call.iova, call.size) || wraps(call.vaddr, call.size);
        if wraps && self.kernel.checks_overflow() {
            return Err(errno(libc::EOVERFLOW));
        }
        if access == renews || misaligned || wraps {
            return Err(errno(libc::EINVAL));
        }
        if renews {
            return self.renew(call);
        }
        self.check_place(call, iova_ranges)?;
        let locked = process.pin(call.vaddr, call.size, call.flags & write != 0)?;
        let MapDma { vaddr, iova, size, flags, .. } = *call;
        self.mappings.insert(iova, Mapping { size, locked, vaddr, flags, without_vaddr: false });
        Ok(())
    }

    /// Checks that nothing overlaps a mapping, and that the limit and the IOMMU allow it.
    fn check_place(&self, call: &MapDma, iova_ranges: &[Range<u64>]) -> io::Result<()> {
        if self.first_in(call.iova, call.size).is_some() {
            return Err(errno(libc::EEXIST));
        }
        if self.mappings.len() >= self.limit as usize {
            return Err(errno(libc::ENOSPC));
        }
        let last = end(call.iova, call.size).wrapping_sub(1);
        let contains = |range: &Range<u64>| range.start <= call.iova && last <= ranges::last(range);
        match iova_ranges.is_empty() || iova_ranges.iter().any(contains) {
            true => Ok(()),
            false => Err(errno(libc::EINVAL)),
        }
    }

    /// Sets the `vaddr` of a mapping whose `vaddr` was invalidated (`VFIO_DMA_MAP_FLAG_VADDR`).
    fn renew(&mut self, call: &MapDma) -> io::Result<()> {
        let (start, found) =
            self.first_in(call.iova, call.size).ok_or_else(|| errno(libc::ENOENT))?;
        if !found.without_vaddr || start != call.iova || found.size != call.size {
            return Err(errno(libc::EINVAL));
        }
        if let Some(mapping) = self.mappings.get_mut(&start) {
            mapping.without_vaddr = false;
            mapping.vaddr = call.vaddr;
        }
        Ok(())
    }

    /// `vfio_dma_do_unmap`: the number of bytes unmapped, and the mappings that had pinned pages.
    /// `notifies`: a notifier unpins those pages.
    pub fn unmap(
        &mut self,
        call: &UnmapDma,
        process: &mut Process,
        notifies: bool,
    ) -> io::Result<(u64, Vec<Range<u64>>)> {
        let (all_flag, vaddr_flag) = match self.kernel.has_unmap_flags() {
            true => (sys::VFIO_DMA_UNMAP_FLAG_ALL, sys::VFIO_DMA_UNMAP_FLAG_VADDR),
            false => (0, 0),
        };
        // The model has no room for the dirty bitmap of an unmap.
        if call.argsz < UnmapDma::ARGSZ || call.flags & !(all_flag | vaddr_flag) != 0 {
            return Err(errno(libc::EINVAL));
        }
        let all = call.flags & all_flag != 0;
        let size = self.unmap_size(call, all)?;
        if self.v2 && !all && self.bisects(call.iova, size) {
            return Err(errno(libc::EINVAL));
        }
        let unmapped = self.covered(call.iova, size);
        if call.flags & vaddr_flag != 0 {
            return Ok((self.invalidate_vaddr(&unmapped)?, Vec::new()));
        }
        let range = |(iova, mapping): &(u64, Mapping)| ranges::sized(*iova, mapping.size);
        let mut pinned: Vec<_> = unmapped.iter().filter_map(range).collect();
        pinned.retain(|range| self.is_pinned(range));
        if !notifies && !pinned.is_empty() {
            return Err(io::Error::other("BUG: no notifier unpins pages of a mapping"));
        }
        pinned.iter().for_each(|range| self.unpin_all(range));
        for (iova, mapping) in &unmapped {
            self.mappings.remove(iova);
            process.unpin(mapping.locked);
        }
        Ok((total(&unmapped), pinned))
    }

    fn unmap_size(&self, call: &UnmapDma, all: bool) -> io::Result<u64> {
        let valid = match all {
            true => call.iova == 0 && call.size == 0,
            false => call.size != 0 && !self.misaligned(call.size),
        };
        let wraps = !all && wraps(call.iova, call.size);
        match valid && !self.misaligned(call.iova) {
            true if wraps && self.kernel.checks_overflow() => Err(errno(libc::EOVERFLOW)),
            true if all => Ok(u64::MAX),
            true if !wraps => Ok(call.size),
            _ => Err(errno(libc::EINVAL)),
        }
    }

    /// Whether an end of the range lies inside a mapping.
    pub fn bisects(&self, iova: u64, size: u64) -> bool {
        let first = self.first_in(iova, 1);
        let last = self.first_in(end(iova, size).wrapping_sub(1), 1);
        first.is_some_and(|(start, _)| start != iova)
            || last.is_some_and(|(start, mapping)| end(start, mapping.size) != end(iova, size))
    }

    /// The mappings that an unmap removes. Version 1 removes whole mappings that begin in the
    /// range, and nothing where a mapping begins before it.
    pub fn covered(&self, iova: u64, size: u64) -> Vec<(u64, Mapping)> {
        match self.first_in(iova, size) {
            Some((start, _)) if self.v2 || start >= iova => self
                .mappings
                .range(start..)
                .take_while(|(start, _)| self.is_before(**start, iova, size))
                .map(|(start, mapping)| (*start, *mapping))
                .collect(),
            _ => Vec::new(),
        }
    }

    /// Invalidates the `vaddr` of all mappings, or of none where one is invalid already.
    fn invalidate_vaddr(&mut self, unmapped: &[(u64, Mapping)]) -> io::Result<u64> {
        if unmapped.iter().any(|(_, mapping)| mapping.without_vaddr) {
            return Err(errno(libc::EINVAL));
        }
        for (iova, _) in unmapped {
            if let Some(mapping) = self.mappings.get_mut(iova) {
                mapping.without_vaddr = true;
            }
        }
        Ok(total(unmapped))
    }

    /// Removes all mappings (`vfio_iommu_unmap_unpin_all`).
    pub fn unmap_all(&mut self, process: &mut Process) {
        for mapping in std::mem::take(&mut self.mappings).values() {
            process.unpin(mapping.locked);
        }
    }

    /// `vfio_iommu_type1_get_info`.
    pub fn info(&self, iova_ranges: &[Range<u64>], buffer: &mut [u8]) -> io::Result<()> {
        let mut reply = Reply::begin(buffer, 16, self.kernel.iommu_info_size(), self.kernel)?;
        reply.put_u32(4, sys::VFIO_IOMMU_INFO_PGSIZES);
        reply.put_u64(8, self.page_sizes);
        let capabilities = self.capabilities(iova_ranges);
        reply.finish(&capabilities, INFO_SIZE, sys::VFIO_IOMMU_INFO_CAPS, 16);
        Ok(())
    }

    fn capabilities(&self, iova_ranges: &[Range<u64>]) -> Capabilities {
        let mut capabilities = Capabilities::new(self.kernel.aligns_capabilities());
        if self.kernel.has_dma_avail() {
            let smallest = self.page_mask().wrapping_add(1);
            let words = [0_u64, smallest, DIRTY_BITMAP_MAX];
            let migration: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            capabilities.add(sys::VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION, &migration);
            let used = u32::try_from(self.mappings.len()).unwrap_or(u32::MAX);
            let left = self.limit.saturating_sub(used);
            capabilities.add(sys::VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, &left.to_ne_bytes());
        }
        if !iova_ranges.is_empty() {
            let ends = iova_ranges.iter().flat_map(|range| [range.start, ranges::last(range)]);
            let words = [iova_ranges.len() as u64].into_iter().chain(ends);
            let ranges: Vec<u8> = words.flat_map(u64::to_ne_bytes).collect();
            capabilities.add(sys::VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, &ranges);
        }
        capabilities
    }
}

/// The size of `struct vfio_iommu_type1_info` with padding.
const INFO_SIZE: usize = 24;

/// The largest dirty bitmap in bytes, for 2^31 pages (`DIRTY_BITMAP_SIZE_MAX`).
pub(crate) const DIRTY_BITMAP_MAX: u64 = 1 << 28;

fn total(mappings: &[(u64, Mapping)]) -> u64 {
    mappings.iter().fold(0, |sum: u64, (_, mapping)| sum.saturating_add(mapping.size))
}
