//! Type 1 IOMMUs (drivers/vfio/vfio_iommu_type1.c): mappings from I/O virtual addresses to a
//! process's memory.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use vfio_bindings::bindings::vfio as sys;

use crate::info::{Capabilities, Reply};
use crate::{Description, Kernel, errno, ranges};

/// `struct vfio_iommu_type1_dma_map`, for [`System::map_dma`](super::System::map_dma).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapDma {
    /// The size that the caller gives the struct; [`MapDma::ARGSZ`] is right.
    pub argsz: u32,
    /// `VFIO_DMA_MAP_FLAG_*`
    pub flags: u32,
    /// The process's address.
    pub vaddr: u64,
    /// The device's address.
    pub iova: u64,
    /// In bytes.
    pub size: u64,
}

impl MapDma {
    /// The size of the struct.
    pub const ARGSZ: u32 = 32;
}

/// `struct vfio_iommu_type1_dma_unmap`, for [`System::unmap_dma`](super::System::unmap_dma).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnmapDma {
    /// The size that the caller gives the struct; [`UnmapDma::ARGSZ`] is right.
    pub argsz: u32,
    /// `VFIO_DMA_UNMAP_FLAG_*`
    pub flags: u32,
    /// The device's address.
    pub iova: u64,
    /// In bytes.
    pub size: u64,
}

impl UnmapDma {
    /// The size of the struct.
    pub const ARGSZ: u32 = 24;
}

/// The memory of the process that maps, and how much of it is locked.
#[derive(Debug)]
pub(crate) struct Process {
    memory: Vec<(Range<u64>, bool)>,
    limit: Option<u64>,
    locked: u64,
}

const PAGE: u64 = 4096;

impl Process {
    pub fn new(description: &Description) -> Self {
        Self {
            memory: description.memory.clone(),
            limit: description.locked_memory.map(|bytes| bytes & !(PAGE - 1)),
            locked: 0,
        }
    }

    /// Bytes locked by mappings. Memory that is mapped twice is counted twice.
    pub fn locked(&self) -> u64 {
        self.locked
    }

    /// Pins page after page: the first that cannot be pinned decides what is wrong, and nothing
    /// stays pinned.
    fn pin(&mut self, vaddr: u64, size: u64, write: bool) -> io::Result<()> {
        let there = self.accessible(vaddr, size, write);
        let allowed = self.limit.map_or(u64::MAX, |limit| limit.saturating_sub(self.locked));
        if allowed < there {
            return Err(errno(libc::ENOMEM));
        }
        if there < size {
            return Err(errno(libc::EFAULT));
        }
        self.locked = self.locked.saturating_add(size);
        Ok(())
    }

    /// How many bytes from `vaddr` on can be pinned, `size` at most.
    fn accessible(&self, vaddr: u64, size: u64, write: bool) -> u64 {
        let end = vaddr.saturating_add(size);
        let mut at = vaddr;
        while let Some((range, _)) = self
            .memory
            .iter()
            .find(|(range, writable)| range.contains(&at) && (*writable || !write))
        {
            at = range.end.min(end);
            if at == end {
                break;
            }
        }
        at.saturating_sub(vaddr)
    }

    fn unpin(&mut self, size: u64) {
        self.locked = self.locked.saturating_sub(size);
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapping {
    size: u64,
    /// In the process's memory.
    pub vaddr: u64,
    /// `VFIO_DMA_MAP_FLAG_READ` and `VFIO_DMA_MAP_FLAG_WRITE`.
    pub flags: u32,
    /// Its virtual address was taken away (`VFIO_DMA_UNMAP_FLAG_VADDR`) and has not been given
    /// anew.
    without_vaddr: bool,
}

/// The mappings of one container.
#[derive(Debug)]
pub(crate) struct Type1 {
    kernel: Kernel,
    /// Version 2, or nesting, which is a version 2 otherwise: unmapping may not bisect a mapping.
    v2: bool,
    page_sizes: u64,
    limit: u32,
    mappings: BTreeMap<u64, Mapping>,
    /// Pages that drivers have pinned, by their number in the devices' addresses, with how often.
    pub pins: BTreeMap<u64, u32>,
}

/// `size` bytes from `start` on, by the arithmetic of the kernel: an end at 2^64 is 0.
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
        }
    }

    /// Whether it is of version 2.
    pub fn is_v2(&self) -> bool {
        self.v2
    }

    /// The mappings, in order.
    pub fn mappings(&self) -> Vec<Range<u64>> {
        let range = |(iova, mapping): (&u64, &Mapping)| ranges::sized(*iova, mapping.size);
        self.mappings.iter().filter_map(range).collect()
    }

    /// Whether a mapping's virtual address was taken away.
    pub fn lacks_vaddr(&self) -> bool {
        self.mappings.values().any(|mapping| mapping.without_vaddr)
    }

    fn misaligned(&self, value: u64) -> bool {
        value & self.page_mask() != 0
    }

    /// The bits below the smallest page.
    fn page_mask(&self) -> u64 {
        (self.page_sizes & self.page_sizes.wrapping_neg()).saturating_sub(1)
    }

    /// The lowest mapping that shares a byte with a range. One that ends at 2^64 meets none.
    pub fn first_in(&self, iova: u64, size: u64) -> Option<(u64, Mapping)> {
        let before = self.mappings.range(..=iova).next_back();
        let over = before.filter(|(start, mapping)| end(**start, mapping.size) > iova);
        let after = || self.mappings.range(iova..).next();
        over.or_else(after)
            .map(|(start, mapping)| (*start, *mapping))
            .filter(|(start, _)| *start < end(iova, size))
    }

    /// Where an access goes, and how much of the mapping is left there.
    pub fn translate(&self, iova: u64) -> Option<(u64, u64)> {
        let (start, mapping) = self.first_in(iova, 1)?;
        let offset = iova.wrapping_sub(start);
        Some((mapping.vaddr.wrapping_add(offset), mapping.size.wrapping_sub(offset)))
    }

    /// `VFIO_IOMMU_MAP_DMA`, where the IOMMU can translate `reach`.
    pub fn map(
        &mut self,
        call: &MapDma,
        reach: &[Range<u64>],
        process: &mut Process,
    ) -> io::Result<()> {
        let (read, write) = (sys::VFIO_DMA_MAP_FLAG_READ, sys::VFIO_DMA_MAP_FLAG_WRITE);
        let vaddr_flag = match self.kernel.has_unmap_flags() {
            true => sys::VFIO_DMA_MAP_FLAG_VADDR,
            false => 0,
        };
        let known = read | write | vaddr_flag;
        let renews = call.flags & vaddr_flag != 0;
        let access = call.flags & (read | write) != 0;
        if call.argsz < MapDma::ARGSZ || call.flags & !known != 0 || access == renews {
            return Err(errno(libc::EINVAL));
        }
        if call.size == 0 || [call.size, call.iova, call.vaddr].iter().any(|v| self.misaligned(*v))
        {
            return Err(errno(libc::EINVAL));
        }
        if wraps(call.iova, call.size) || wraps(call.vaddr, call.size) {
            return Err(errno(libc::EINVAL));
        }
        if renews {
            return self.renew(call);
        }
        self.place(call, reach)?;
        process.pin(call.vaddr, call.size, call.flags & write != 0)?;
        let mapping =
            Mapping { size: call.size, vaddr: call.vaddr, flags: call.flags, without_vaddr: false };
        self.mappings.insert(call.iova, mapping);
        Ok(())
    }

    /// Whether there is room for a mapping, and for one more.
    fn place(&self, call: &MapDma, reach: &[Range<u64>]) -> io::Result<()> {
        if self.first_in(call.iova, call.size).is_some() {
            return Err(errno(libc::EEXIST));
        }
        if self.mappings.len() >= self.limit as usize {
            return Err(errno(libc::ENOSPC));
        }
        let last = end(call.iova, call.size).wrapping_sub(1);
        let reachable = |range: &Range<u64>| range.start <= call.iova && last < range.end;
        match reach.is_empty() || reach.iter().any(reachable) {
            true => Ok(()),
            false => Err(errno(libc::EINVAL)),
        }
    }

    /// A mapping whose address was taken away gets a new one.
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

    /// `VFIO_IOMMU_UNMAP_DMA`: how many bytes were unmapped, and the mappings among them that had
    /// pinned pages. `is_told`: whether somebody is there who lets go of those.
    pub fn unmap(
        &mut self,
        call: &UnmapDma,
        process: &mut Process,
        is_told: bool,
    ) -> io::Result<(u64, Vec<Range<u64>>)> {
        let (all_flag, vaddr_flag) = match self.kernel.has_unmap_flags() {
            true => (sys::VFIO_DMA_UNMAP_FLAG_ALL, sys::VFIO_DMA_UNMAP_FLAG_VADDR),
            false => (0, 0),
        };
        // A dirty bitmap needs a tracking that nobody can have turned on here.
        if call.argsz < UnmapDma::ARGSZ || call.flags & !(all_flag | vaddr_flag) != 0 {
            return Err(errno(libc::EINVAL));
        }
        let all = call.flags & all_flag != 0;
        let size = self.unmap_size(call, all)?;
        if self.v2 && !all && self.bisects(call.iova, size) {
            return Err(errno(libc::EINVAL));
        }
        let doomed = self.covered(call.iova, size);
        if call.flags & vaddr_flag != 0 {
            return Ok((self.take_vaddr(&doomed)?, Vec::new()));
        }
        let range = |(iova, mapping): &(u64, Mapping)| ranges::sized(*iova, mapping.size);
        let mut pinned: Vec<_> = doomed.iter().filter_map(range).collect();
        pinned.retain(|range| self.is_pinned(range));
        if !is_told && !pinned.is_empty() {
            return Err(io::Error::other(
                "the kernel stops itself: nobody lets go of pinned pages",
            ));
        }
        pinned.iter().for_each(|range| self.let_go(range));
        for (iova, mapping) in &doomed {
            self.mappings.remove(iova);
            process.unpin(mapping.size);
        }
        Ok((total(&doomed), pinned))
    }

    fn unmap_size(&self, call: &UnmapDma, all: bool) -> io::Result<u64> {
        let valid = match all {
            true => call.iova == 0 && call.size == 0,
            false => call.size != 0 && !self.misaligned(call.size) && !wraps(call.iova, call.size),
        };
        match valid && !self.misaligned(call.iova) {
            true if all => Ok(u64::MAX),
            true => Ok(call.size),
            false => Err(errno(libc::EINVAL)),
        }
    }

    /// Whether a mapping begins before a range and reaches into it, or ends behind it.
    fn bisects(&self, iova: u64, size: u64) -> bool {
        let first = self.first_in(iova, 1);
        let last = self.first_in(end(iova, size).wrapping_sub(1), 1);
        first.is_some_and(|(start, _)| start != iova)
            || last.is_some_and(|(start, mapping)| end(start, mapping.size) != end(iova, size))
    }

    /// What an unmap takes. Version 1 takes whole mappings, too, and none that begins before the
    /// range.
    fn covered(&self, iova: u64, size: u64) -> Vec<(u64, Mapping)> {
        match self.first_in(iova, size) {
            Some((start, _)) if self.v2 || start >= iova => self
                .mappings
                .range(start..)
                .take_while(|(start, _)| **start < end(iova, size))
                .map(|(start, mapping)| (*start, *mapping))
                .collect(),
            _ => Vec::new(),
        }
    }

    /// Takes the virtual addresses away and leaves the mappings: all or none of them.
    fn take_vaddr(&mut self, doomed: &[(u64, Mapping)]) -> io::Result<u64> {
        if let Some(twice) = doomed.iter().position(|(_, mapping)| mapping.without_vaddr) {
            self.give_back(doomed.get(..twice).unwrap_or_default());
            return Err(errno(libc::EINVAL));
        }
        for (iova, _) in doomed {
            if let Some(mapping) = self.mappings.get_mut(iova) {
                mapping.without_vaddr = true;
            }
        }
        Ok(total(doomed))
    }

    fn give_back(&mut self, mappings: &[(u64, Mapping)]) {
        for (iova, _) in mappings {
            if let Some(mapping) = self.mappings.get_mut(iova) {
                mapping.without_vaddr = false;
            }
        }
    }

    /// All mappings go, with the last group.
    pub fn release(&mut self, process: &mut Process) {
        for mapping in std::mem::take(&mut self.mappings).values() {
            process.unpin(mapping.size);
        }
    }

    /// `VFIO_IOMMU_GET_INFO`.
    pub fn info(&self, reach: &[Range<u64>], buffer: &mut [u8]) -> io::Result<()> {
        let mut reply = Reply::begin(buffer, 16, self.kernel.iommu_info_size(), self.kernel)?;
        reply.put_u32(4, sys::VFIO_IOMMU_INFO_PGSIZES);
        reply.put_u64(8, self.page_sizes);
        let capabilities = self.capabilities(reach);
        reply.finish(&capabilities, INFO_SIZE, sys::VFIO_IOMMU_INFO_CAPS, 16);
        Ok(())
    }

    fn capabilities(&self, reach: &[Range<u64>]) -> Capabilities {
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
        let count = reach.len() as u64;
        if count > 0 {
            let last = |range: &Range<u64>| range.end.saturating_sub(1);
            let ends = reach.iter().flat_map(|range| [range.start, last(range)]);
            let words = [count].into_iter().chain(ends);
            let ranges: Vec<u8> = words.flat_map(u64::to_ne_bytes).collect();
            capabilities.add(sys::VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, &ranges);
        }
        capabilities
    }
}

/// The size of `struct vfio_iommu_type1_info`, padding included.
const INFO_SIZE: usize = 24;

/// A bitmap of so many bytes at most: one for 2^31 pages.
const DIRTY_BITMAP_MAX: u64 = 1 << 28;

fn total(mappings: &[(u64, Mapping)]) -> u64 {
    mappings.iter().fold(0, |sum: u64, (_, mapping)| sum.saturating_add(mapping.size))
}
