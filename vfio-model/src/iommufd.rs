//! `/dev/iommu`: objects with numbers (drivers/iommu/iommufd/main.c and ioas.c).

use std::io;
use std::ops::RangeInclusive;

use crate::backing::Backing;
use crate::describe::Description;
use crate::errno::errno;
use crate::files::{Fd, IommufdId, Kind};
use crate::info::{put, word};
use crate::ioas::{Ioas, IoasMap, IoasUnmap, Map};
use crate::objects::{IommuOption, Iommufd, Object};
use crate::process::Process;
use crate::spans::Span;
use crate::state::{State, System};

/// The size of `struct iommu_ioas_iova_ranges` and of `struct iommu_iova_range`.
const IOVA_RANGES: usize = 32;
const IOVA_RANGE: usize = 16;

impl System {
    /// Opens `/dev/iommu` (`iommufd_fops_open`).
    ///
    /// # Errors
    ///
    /// `ENOENT`: the kernel has no iommufd.
    pub fn open_iommufd(&self) -> io::Result<Fd> {
        let mut state = self.state();
        state.description.check_iommufd()?;
        let id = IommufdId(state.next_id());
        state.iommufds.insert(id, Iommufd::default());
        Ok(state.files.open(Kind::Iommufd(id)))
    }

    /// `IOMMU_DESTROY` (`iommufd_object_remove`).
    ///
    /// # Errors
    ///
    /// - `ENOENT`: the number names no object.
    /// - `EBUSY`: the object is a device or a page table, or an address space to which a device is
    ///   attached.
    pub fn iommu_destroy(&self, iommufd: Fd, id: u32) -> io::Result<()> {
        let mut state = self.state();
        let (iommufd, description, process) = state.iommufd(iommufd)?;
        match iommufd.objects.get_mut(&id) {
            None => return Err(errno(libc::ENOENT)),
            Some(Object::Mock { device }) => {
                let device = *device;
                iommufd.remove_mock(id, device, description.kernel, process);
                return Ok(());
            }
            Some(Object::Ioas(ioas)) if ioas.page_tables.is_empty() => ioas.clear(process),
            Some(_) => return Err(errno(libc::EBUSY)),
        }
        iommufd.objects.remove(&id);
        iommufd.compat = iommufd.compat.filter(|compat| *compat != id);
        Ok(())
    }

    /// `IOMMU_IOAS_ALLOC` (`iommufd_ioas_alloc_ioctl`): the number of a new address space, which
    /// is the lowest that is free.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP`: a flag is set.
    pub fn ioas_alloc(&self, iommufd: Fd, flags: u32) -> io::Result<u32> {
        let mut state = self.state();
        let (iommufd, ..) = state.iommufd(iommufd)?;
        match flags {
            0 => Ok(iommufd.add(Object::Ioas(Ioas::new(iommufd.account)))),
            _ => Err(errno(libc::EOPNOTSUPP)),
        }
    }

    /// `IOMMU_IOAS_IOVA_RANGES` (`iommufd_ioas_iova_ranges`). The buffer holds
    /// `struct iommu_ioas_iova_ranges`, and the array of ranges behind its `size`.
    ///
    /// # Errors
    ///
    /// - `EOPNOTSUPP`: the reserved word is not 0.
    /// - `ENOENT`: there is no such address space.
    /// - `EMSGSIZE`: the array is too small; the reply holds the number of ranges.
    pub fn ioas_iova_ranges(&self, iommufd: Fd, buffer: &mut [u8]) -> io::Result<()> {
        let mut state = self.state();
        let (iommufd, ..) = state.iommufd(iommufd)?;
        if word(buffer, 12) != 0 {
            return Err(errno(libc::EOPNOTSUPP));
        }
        let ioas = iommufd.ioas(word(buffer, 4))?;
        let (free, room) = (ioas.free(), word(buffer, 8) as usize);
        let array = (word(buffer, 0) as usize).max(IOVA_RANGES);
        for (number, span) in free.iter().take(room).enumerate() {
            let range = [span.first, span.last].map(u64::to_ne_bytes).concat();
            put(buffer, number.saturating_mul(IOVA_RANGE).saturating_add(array), &range);
        }
        put(buffer, 8, &u32::try_from(free.len()).unwrap_or(u32::MAX).to_ne_bytes());
        put(buffer, 24, &ioas.alignment.to_ne_bytes());
        match free.len() > room {
            true => Err(errno(libc::EMSGSIZE)),
            false => Ok(()),
        }
    }

    /// `IOMMU_IOAS_ALLOW_IOVAS` (`iommufd_ioas_allow_iovas`): replaces the ranges that no device
    /// may reserve, and in which the kernel chooses IOVAs.
    ///
    /// # Errors
    ///
    /// - `ENOENT`: there is no such address space.
    /// - `EINVAL`: a range has not at least two addresses, or overlaps another.
    /// - `EADDRINUSE`: a range is reserved.
    pub fn ioas_allow_iovas(
        &self,
        iommufd: Fd,
        ioas: u32,
        ranges: &[RangeInclusive<u64>],
    ) -> io::Result<()> {
        let mut state = self.state();
        let (iommufd, ..) = state.iommufd(iommufd)?;
        let span = |range: &RangeInclusive<u64>| Span { first: *range.start(), last: *range.end() };
        iommufd.ioas(ioas)?.allow(&ranges.iter().map(span).collect::<Vec<_>>())
    }

    /// `IOMMU_IOAS_MAP` (`iommufd_ioas_map`): the IOVA. Pages are pinned only while a device is
    /// attached.
    ///
    /// # Errors
    ///
    /// In the order in which the kernel checks:
    /// - `EOPNOTSUPP`: a flag is unknown.
    /// - `EOVERFLOW`: the IOVA or the length is 2^64 - 1.
    /// - `EINVAL`: no access is asked for.
    /// - `ENOENT`: there is no such address space.
    /// - `EINVAL`: the length is 0, or within a page of 2^64.
    /// - `EOVERFLOW`: the end of the memory does not fit into 64 bits.
    /// - `EINVAL`: the length or the IOVA is not aligned.
    /// - `EOVERFLOW`: the end of the IOVAs does not fit into 64 bits.
    /// - `EINVAL`: the IOVAs are reserved.
    /// - `EEXIST`: the IOVAs overlap an area.
    /// - `EOVERFLOW`, `EINVAL` or `ENOSPC`: the kernel finds no IOVA, where it chooses one.
    /// - `EINVAL`: the memory is not aligned.
    /// - `EFAULT`: a device is attached, and the process has no such memory or cannot write it.
    /// - `ENOMEM`: a device is attached, and the memory exceeds `RLIMIT_MEMLOCK`.
    pub fn ioas_map(&self, iommufd: Fd, call: &IoasMap) -> io::Result<u64> {
        let mut state = self.state();
        let (iommufd, description, process) = state.iommufd(iommufd)?;
        let ioas = iommufd.ioas_to_map(call.flags, [call.iova, call.length], call.ioas)?;
        Backing::Address(call.user_va).check_length(call.length, description.kernel)?;
        ioas.map(&Map::from(call), process)
    }

    /// `IOMMU_IOAS_UNMAP` (`iommufd_ioas_unmap`): the number of bytes that were unmapped.
    ///
    /// # Errors
    ///
    /// - `ENOENT`: there is no such address space, or no area in the range. Or an area is partly in
    ///   the range; the areas before it are unmapped then.
    /// - `EOVERFLOW`: the IOVA or the length is 2^64 - 1, or the end does not fit into 64 bits.
    /// - `EINVAL`: the length is 0.
    pub fn ioas_unmap(&self, iommufd: Fd, call: &IoasUnmap) -> io::Result<u64> {
        let mut state = self.state();
        let (iommufd, _, process) = state.iommufd(iommufd)?;
        iommufd.ioas(call.ioas)?.unmap(call.iova, call.length, process)
    }

    /// `IOMMU_OPTION` (`iommufd_option`): the value after the call.
    ///
    /// # Errors
    ///
    /// - `EOPNOTSUPP`: the option or the operation is unknown, or an option of all objects has the
    ///   number of an object.
    /// - `ENOENT`: there is no such address space.
    /// - `EPERM`: the process lacks `CAP_SYS_RESOURCE`, which the mode of locked memory needs.
    /// - `EBUSY`: the iommufd has objects, so that the mode cannot change.
    /// - `EINVAL`: the value is neither 0 nor 1, or pages are in use and cannot become small.
    /// - `EADDRINUSE`: an area is not aligned to small pages.
    pub fn iommu_option(&self, iommufd: Fd, call: &IommuOption) -> io::Result<u64> {
        let mut state = self.state();
        let (iommufd, description, _) = state.iommufd(iommufd)?;
        match call.option {
            IommuOption::RLIMIT_MODE => iommufd.rlimit_mode(call, description),
            IommuOption::HUGE_PAGES => iommufd.huge_pages(call),
            _ => Err(errno(libc::EOPNOTSUPP)),
        }
    }

    /// `IOMMU_VFIO_IOAS` (`iommufd_vfio_ioas`): reads (0), sets (1) or clears (2) the address space of
    /// groups whose container is the iommufd. Returns its number; 0 after a clear.
    ///
    /// # Errors
    ///
    /// - `ENODEV`: there is none to read.
    /// - `ENOENT`: there is no such address space.
    /// - `EOPNOTSUPP`: the operation is unknown.
    pub fn vfio_ioas(&self, iommufd: Fd, op: u16, ioas: u32) -> io::Result<u32> {
        let mut state = self.state();
        let (iommufd, ..) = state.iommufd(iommufd)?;
        match op {
            0 => return iommufd.compat.ok_or_else(|| errno(libc::ENODEV)),
            1 => iommufd.compat = iommufd.ioas(ioas).map(|_| Some(ioas))?,
            2 => iommufd.compat = None,
            _ => return Err(errno(libc::EOPNOTSUPP)),
        }
        Ok(iommufd.compat.unwrap_or(0))
    }

    /// `IOMMU_IOAS_CHANGE_PROCESS` (`iommufd_ioas_change_process`): the process that calls takes
    /// over the accounts of locked memory. The system has one process, so nothing changes.
    ///
    /// # Errors
    ///
    /// `EINVAL`: an area is memory of the process, and not of a file.
    pub fn ioas_change_process(&self, iommufd: Fd) -> io::Result<()> {
        let mut state = self.state();
        let (iommufd, ..) = state.iommufd(iommufd)?;
        let has_memory = |object: &Object| match object {
            Object::Ioas(ioas) => ioas.has_memory_of_process(),
            _ => false,
        };
        match iommufd.objects.values().any(has_memory) {
            true => Err(errno(libc::EINVAL)),
            false => Ok(()),
        }
    }

    /// Where in the process's memory, or in the file, the access of an attached device to `iova`
    /// goes, and how many bytes the area has from there on; `None` without an area.
    ///
    /// # Errors
    ///
    /// `ENOENT`: there is no such address space.
    pub fn ioas_translate(
        &self,
        iommufd: Fd,
        ioas: u32,
        iova: u64,
    ) -> io::Result<Option<(u64, u64)>> {
        let mut state = self.state();
        let (iommufd, ..) = state.iommufd(iommufd)?;
        let found = iommufd.ioas(ioas)?.first_in(Span { first: iova, last: iova });
        Ok(found.map(|area| {
            let offset = iova.wrapping_sub(area.span.first);
            (area.memory.behind(offset).start(), area.span.length().wrapping_sub(offset))
        }))
    }

    /// The areas of an address space, in order.
    ///
    /// # Errors
    ///
    /// `ENOENT`: there is no such address space.
    pub fn ioas_areas(&self, iommufd: Fd, ioas: u32) -> io::Result<Vec<RangeInclusive<u64>>> {
        let mut state = self.state();
        let (iommufd, ..) = state.iommufd(iommufd)?;
        let areas = iommufd.ioas(ioas)?.areas.values();
        Ok(areas.map(|area| area.span.first..=area.span.last).collect())
    }

    /// The number of iommufds. A device that is bound keeps its iommufd after the fd is closed.
    pub fn iommufds(&self) -> usize {
        self.state().iommufds.len()
    }
}

impl State {
    /// The iommufd of an fd, with what its calls need.
    pub fn iommufd(&mut self, fd: Fd) -> io::Result<(&mut Iommufd, &Description, &mut Process)> {
        let Kind::Iommufd(id) = self.files.kind(fd)? else {
            return self.unknown_ioctl(fd);
        };
        let iommufd = self.iommufds.get_mut(&id).ok_or_else(|| errno(libc::ENOTTY))?;
        Ok((iommufd, &self.description, &mut self.process))
    }

    /// Frees an iommufd that no file, device or group refers to (`iommufd_fops_release`).
    pub fn free_iommufd(&mut self, id: IommufdId) {
        let mut bound = self.devices.values().filter_map(|device| device.bound);
        let is_bound = bound.any(|bound| bound.iommufd == id);
        let mut groups = self.iommufd_groups.values();
        if self.files.exists(Kind::Iommufd(id)) || is_bound || groups.any(|other| *other == id) {
            return;
        }
        let objects = self.iommufds.remove(&id).map(|iommufd| iommufd.objects);
        for object in objects.into_iter().flatten() {
            if let (_, Object::Ioas(mut ioas)) = object {
                ioas.clear(&mut self.process);
            }
        }
    }
}
