//! An iommufd as the container of groups (drivers/iommu/iommufd/vfio_compat.c).
//!
//! The calls of a container work on one address space of the iommufd, which the first group makes.

use std::io;

use vfio_bindings::bindings::vfio as sys;

use crate::backing::Backing;
use crate::describe::Description;
use crate::errno::errno;
use crate::files::{Fd, IommufdId, Kind};
use crate::info::{argsz, put};
use crate::ioas::{Ioas, IoasMap, Map};
use crate::objects::{Iommufd, Object};
use crate::process::{PAGE, Process};
use crate::spans::Span;
use crate::state::State;
use crate::type1::{MapDma, UnmapDma};

/// The size of `struct vfio_iommu_type1_info`, which is also the offset of the first capability.
const INFO: usize = 24;
/// The offset of the capability of the IOVA ranges, which follows that of the free mappings.
const RANGES: usize = INFO + 16;
/// The sizes of these capabilities without ranges, and of a range.
const AVAIL: usize = 12;
const HEADER: usize = 16;
const RANGE: usize = 16;

impl State {
    /// The iommufd of an fd.
    pub fn as_iommufd(&self, fd: Fd) -> Option<IommufdId> {
        match self.files.kind(fd) {
            Ok(Kind::Iommufd(id)) => Some(id),
            _ => None,
        }
    }

    fn context(&mut self, id: IommufdId) -> io::Result<&mut Iommufd> {
        self.iommufds.get_mut(&id).ok_or_else(|| errno(libc::ENODEV))
    }

    /// The address space of groups: ENODEV without one.
    fn compat(&mut self, id: IommufdId) -> io::Result<(&mut Ioas, &Description, &mut Process)> {
        let iommufd = self.iommufds.get_mut(&id).ok_or_else(|| errno(libc::ENODEV))?;
        let ioas = iommufd.compat.ok_or_else(|| errno(libc::ENODEV))?;
        Ok((iommufd.ioas(ioas)?, &self.description, &mut self.process))
    }

    /// `VFIO_GROUP_SET_CONTAINER` of an iommufd (`iommufd_vfio_compat_ioas_create`).
    pub fn compat_join(&mut self, id: IommufdId, group: u32) -> io::Result<()> {
        let noiommu = self.description.noiommu.contains(&group);
        let iommufd = self.context(id)?;
        match (noiommu, iommufd.compat, iommufd.no_iommu) {
            (true, None, _) => iommufd.no_iommu = true,
            (true, Some(_), _) | (false, _, true) => return Err(errno(libc::EINVAL)),
            (false, Some(_), false) => {}
            (false, None, false) => {
                let ioas = Ioas::new(iommufd.account);
                iommufd.compat = Some(iommufd.add(Object::Ioas(ioas)));
            }
        }
        self.iommufd_groups.insert(group, id);
        Ok(())
    }

    /// `iommufd_vfio_check_extension`, of a kernel with `CONFIG_VFIO_NOIOMMU`.
    pub fn compat_extension(&mut self, id: IommufdId, extension: u64) -> io::Result<u32> {
        let no_iommu = self.context(id)?.no_iommu;
        let is = |other: u32| extension == u64::from(other);
        if is(sys::VFIO_DMA_CC_IOMMU) {
            let (ioas, description, _) = self.compat(id)?;
            return Ok((ioas.page_tables.is_empty() || description.coherent).into());
        }
        let types = [sys::VFIO_TYPE1_IOMMU, sys::VFIO_TYPE1v2_IOMMU, sys::VFIO_UNMAP_ALL];
        let has = types.into_iter().any(is) && !no_iommu || is(sys::VFIO_NOIOMMU_IOMMU);
        Ok(has.into())
    }

    /// `iommufd_vfio_set_iommu`. Version 1 may bisect areas, so it uses small pages.
    pub fn compat_set_iommu(&mut self, id: IommufdId, kind: u64) -> io::Result<()> {
        let no_iommu = self.context(id)?.no_iommu;
        let is = |other: u32| kind == u64::from(other);
        if is(sys::VFIO_NOIOMMU_IOMMU) && no_iommu {
            return match self.description.raw_io {
                true => Ok(()),
                false => Err(errno(libc::EPERM)),
            };
        }
        if !(is(sys::VFIO_TYPE1_IOMMU) || is(sys::VFIO_TYPE1v2_IOMMU)) || no_iommu {
            return Err(errno(libc::EINVAL));
        }
        let (ioas, ..) = self.compat(id)?;
        match is(sys::VFIO_TYPE1_IOMMU) {
            true => ioas.use_small_pages(),
            false => Ok(()),
        }
    }

    /// `iommufd_vfio_map_dma`.
    pub fn compat_map(&mut self, id: IommufdId, call: &MapDma) -> io::Result<()> {
        let (read, write) = (sys::VFIO_DMA_MAP_FLAG_READ, sys::VFIO_DMA_MAP_FLAG_WRITE);
        if call.argsz < MapDma::ARGSZ || call.flags & !(read | write) != 0 {
            return Err(errno(libc::EINVAL));
        }
        let flag = |given, flag| if call.flags & given != 0 { flag } else { 0 };
        let access = flag(read, IoasMap::READABLE) | flag(write, IoasMap::WRITEABLE);
        let (ioas, description, process) = self.compat(id)?;
        let memory = Backing::Address(call.vaddr);
        memory.check_length(call.size, description.kernel)?;
        let flags = IoasMap::FIXED_IOVA | access;
        let map = Map { flags, memory, length: call.size, iova: call.iova };
        ioas.map(&map, process).map(|_| ())
    }

    /// `iommufd_vfio_unmap_dma`.
    pub fn compat_unmap(&mut self, id: IommufdId, call: &UnmapDma) -> io::Result<u64> {
        let all = call.flags & sys::VFIO_DMA_UNMAP_FLAG_ALL != 0;
        if call.argsz < UnmapDma::ARGSZ || call.flags & !sys::VFIO_DMA_UNMAP_FLAG_ALL != 0 {
            return Err(errno(libc::EINVAL));
        }
        let (ioas, _, process) = self.compat(id)?;
        if all && (call.iova, call.size) != (0, 0) {
            return Err(errno(libc::EINVAL));
        }
        if all {
            return ioas.unmap(0, u64::MAX, process);
        }
        if ioas.small_pages {
            let last = call.iova.wrapping_add(call.size).wrapping_sub(1);
            ioas.cut(last)?;
            if call.iova != 0 {
                ioas.cut(call.iova.wrapping_sub(1))?;
            }
        }
        ioas.unmap_range(call.iova, call.size, process)
    }

    /// `iommufd_vfio_iommu_get_info`. Each capability is written as far as it fits.
    pub fn compat_info(&mut self, id: IommufdId, buffer: &mut [u8]) -> io::Result<()> {
        let room = argsz(buffer);
        if room < HEADER {
            return Err(errno(libc::EINVAL));
        }
        let (ioas, description, _) = self.compat(id)?;
        let free = ioas.free();
        let total = free.len().saturating_mul(RANGE).saturating_add(RANGES + HEADER);
        put_avail(buffer, room);
        put_ranges(buffer, room, &free);
        let offset = if room >= total { INFO as u32 } else { 0 };
        let flags = sys::VFIO_IOMMU_INFO_PGSIZES | sys::VFIO_IOMMU_INFO_CAPS;
        let mut info = words(&[u32::try_from(total).unwrap_or(u32::MAX), flags]);
        info.extend(page_sizes(ioas, description).to_ne_bytes());
        info.extend(words(&[offset, 0]));
        info.truncate(room.min(INFO));
        put(buffer, 0, &info);
        Ok(())
    }
}

/// The capability of the free mappings, which have no limit (`iommufd_fill_cap_dma_avail`).
fn put_avail(buffer: &mut [u8], room: usize) {
    if room.saturating_sub(INFO) >= AVAIL {
        put(buffer, INFO, &words(&[sys::VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL | ONE, 0, u32::MAX]));
    }
    if room >= RANGES {
        put(buffer, INFO.saturating_add(4), &(RANGES as u32).to_ne_bytes());
    }
}

/// The capability of the IOVA ranges (`iommufd_fill_cap_iova`).
fn put_ranges(buffer: &mut [u8], room: usize, free: &[Span]) {
    let mut at = RANGES + HEADER;
    for span in free {
        let end = at.saturating_add(RANGE);
        if room >= end {
            put(buffer, at, &[span.first, span.last].map(u64::to_ne_bytes).concat());
        }
        at = end;
    }
    if room >= at {
        let count = u32::try_from(free.len()).unwrap_or(u32::MAX);
        let id = sys::VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE | ONE;
        put(buffer, RANGES, &words(&[id, 0, count, 0]));
    }
}

/// Version 1 of a capability, in the word of its number.
const ONE: u32 = 1 << 16;

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// `iommufd_get_pagesizes`: without a page table, all sizes from the CPU's on.
fn page_sizes(ioas: &Ioas, description: &Description) -> u64 {
    let sizes = match ioas.page_tables.is_empty() {
        true => PAGE.wrapping_neg(),
        false => description.page_sizes,
    };
    sizes.max(ioas.alignment)
}
