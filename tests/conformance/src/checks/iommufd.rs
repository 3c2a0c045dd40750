//! `/dev/iommu` without a device: objects, areas, options and sizes.

use libc::{
    E2BIG, EBADF, EBUSY, EEXIST, EINVAL, EMSGSIZE, ENOENT, ENOTTY, EOPNOTSUPP, EOVERFLOW, EPERM,
};
use vfio_model::{Fd, IoasMap, IoasMapFile, IoasUnmap, IommuOption};

use super::{Check, Stage, Verdict, done, fails, same};
use crate::Core;
use crate::arena::PAGE;

pub fn checks<C: Core>() -> Vec<Check<C>> {
    vec![
        ("an object gets the lowest free number", numbers),
        ("a wrong IOAS_MAP is refused", bad_maps),
        ("without a device an area needs no memory and no alignment", lazy),
        ("areas do not overlap", overlap),
        ("the kernel chooses an IOVA", chosen),
        ("IOAS_UNMAP does not split an area", split),
        ("a wrong IOAS_UNMAP is refused", bad_unmaps),
        ("IOVA_RANGES reports the number of ranges", ranges),
        ("allowed IOVAs are ranges apart", allowed),
        ("the mode of locked memory is set before the first object", mode),
        ("small pages are an option of an address space", small_pages),
        ("the size of a struct of iommufd is checked first", sizes),
        ("files are mapped since 6.13", files),
        ("an iommufd whose areas are files changes its process since 7.3", process),
    ]
}

/// Without iommufd.
pub fn without<C: Core>() -> Vec<Check<C>> {
    vec![("a kernel without iommufd has no node of it", |stage| {
        fails(stage.core.open_iommufd(), ENOENT)?;
        let name = stage.device_of(0)?;
        fails(stage.core.open_cdev(&name), ENOENT)
    })]
}

/// Fixed IOVA, read and write.
const FIXED: u32 = 7;

/// An iommufd with an address space.
#[derive(Clone, Copy)]
pub(super) struct Space {
    pub iommufd: Fd,
    pub ioas: u32,
}

impl<C: Core> Stage<'_, C> {
    #[track_caller]
    pub(super) fn iommufd(&mut self) -> Result<Fd, String> {
        let fd = done(self.core.open_iommufd())?;
        self.opened.push(fd);
        Ok(fd)
    }

    #[track_caller]
    pub(super) fn space(&mut self) -> Result<Space, String> {
        let iommufd = self.iommufd()?;
        Ok(Space { iommufd, ioas: done(self.core.ioas_alloc(iommufd, 0))? })
    }

    /// A map of writable memory.
    pub(super) fn area(&self, space: Space, iova: u64, pages: u64) -> IoasMap {
        IoasMap {
            flags: FIXED,
            ioas: space.ioas,
            user_va: self.scene.arena.base,
            length: pages.saturating_mul(PAGE),
            iova,
        }
    }

    #[track_caller]
    pub(super) fn map(&mut self, space: Space, map: &IoasMap) -> Result<u64, String> {
        done(self.core.ioas_map(space.iommufd, map))
    }

    #[track_caller]
    pub(super) fn clear(&mut self, space: Space) -> Result<u64, String> {
        let all = IoasUnmap { ioas: space.ioas, iova: 0, length: u64::MAX };
        done(self.core.ioas_unmap(space.iommufd, &all))
    }

    /// The first and last IOVAs of the ranges, and the alignment.
    #[track_caller]
    pub(super) fn ranges(&mut self, space: Space) -> Result<(Vec<[u64; 2]>, u64), String> {
        let mut argument = words(&[32, space.ioas, 8, 0]);
        argument.resize(32 + 8 * 16, 0);
        done(self.core.request(space.iommufd, IOVA_RANGES, &mut argument))?;
        let count = argument.get(8).copied().unwrap_or(0).into();
        let longs: Vec<u64> = argument
            .chunks_exact(8)
            .map(|long| long.try_into().map_or(0, u64::from_ne_bytes))
            .collect();
        let ranges = longs.get(4..).unwrap_or_default().chunks_exact(2).take(count);
        let ranges = ranges.filter_map(|range| range.try_into().ok()).collect();
        Ok((ranges, longs.get(3).copied().unwrap_or(0)))
    }
}

/// Requests, counted from `VFIO_BASE`.
const ALLOW_IOVAS: u32 = 30;
const IOVA_RANGES: u32 = 32;

pub(super) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn numbers<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let Space { iommufd, ioas } = stage.space()?;
    same((ioas, done(stage.core.ioas_alloc(iommufd, 0))?), (1, 2))?;
    done(stage.core.iommu_destroy(iommufd, 1))?;
    fails(stage.core.iommu_destroy(iommufd, 1), ENOENT)?;
    same(done(stage.core.ioas_alloc(iommufd, 0))?, 1)?;
    fails(stage.core.ioas_alloc(iommufd, 1), EOPNOTSUPP)?;
    let other = stage.iommufd()?;
    same(done(stage.core.ioas_alloc(other, 0))?, 1)
}

fn bad_maps<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let space = stage.space()?;
    let good = stage.area(space, 0, 1);
    let too_long = if stage.kernel().checks_overflow() { EOVERFLOW } else { EINVAL };
    for (bad, errno) in [
        (IoasMap { flags: 15, ..good }, EOPNOTSUPP),
        (IoasMap { iova: u64::MAX, ..good }, EOVERFLOW),
        (IoasMap { length: u64::MAX, ..good }, EOVERFLOW),
        (IoasMap { flags: 1, ..good }, EINVAL),
        (IoasMap { ioas: 9, ..good }, ENOENT),
        (IoasMap { length: 0, ..good }, EINVAL),
        (IoasMap { length: u64::MAX - PAGE + 1, user_va: 0, ..good }, EINVAL),
        (IoasMap { length: u64::MAX - PAGE + 1, ..good }, too_long),
        (IoasMap { user_va: u64::MAX, ..good }, EOVERFLOW),
        (IoasMap { iova: u64::MAX - 1, ..good }, EOVERFLOW),
    ] {
        fails(stage.core.ioas_map(space.iommufd, &bad), errno)?;
    }
    same(stage.clear(space)?, 0)
}

fn lazy<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let space = stage.space()?;
    let map = IoasMap { user_va: 4097, length: 3, ..stage.area(space, 5, 1) };
    same(stage.map(space, &map)?, 5)?;
    same(stage.ranges(space)?, (vec![[0, u64::MAX]], 1))?;
    same(stage.clear(space)?, 3)
}

fn overlap<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let space = stage.space()?;
    let first = stage.area(space, 4 * PAGE, 2);
    stage.map(space, &first)?;
    for iova in [3, 4, 5] {
        let other = stage.area(space, PAGE.saturating_mul(iova), 2);
        fails(stage.core.ioas_map(space.iommufd, &other), EEXIST)?;
    }
    for iova in [2, 6] {
        let other = stage.area(space, PAGE.saturating_mul(iova), 2);
        stage.map(space, &other)?;
    }
    same(stage.clear(space)?, 6 * PAGE)
}

fn chosen<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let space = stage.space()?;
    let any = |user_va, length| IoasMap { flags: 6, ioas: space.ioas, user_va, length, iova: 9 };
    for (user_va, length, iova) in [
        (PAGE, PAGE, PAGE),
        (4 * PAGE, 4 * PAGE, 4 * PAGE),
        (4 * PAGE, PAGE, 2 * PAGE),
        (PAGE + 0x234, 1, 3 * PAGE + 0x234),
        (2 << 30, 4 << 30, 2 << 20),
    ] {
        same(stage.map(space, &any(user_va, length))?, iova)?;
    }
    fails(stage.core.ioas_map(space.iommufd, &any(PAGE, u64::MAX / 2)), EOVERFLOW)
}

fn split<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let space = stage.space()?;
    for (iova, pages) in [(0, 1), (PAGE, 1), (3 * PAGE, 2)] {
        let map = stage.area(space, iova, pages);
        stage.map(space, &map)?;
    }
    let unmap = |iova, length| IoasUnmap { ioas: space.ioas, iova, length };
    fails(stage.core.ioas_unmap(space.iommufd, &unmap(4 * PAGE, PAGE)), ENOENT)?;
    fails(stage.core.ioas_unmap(space.iommufd, &unmap(PAGE, 3 * PAGE)), ENOENT)?;
    fails(stage.core.ioas_unmap(space.iommufd, &unmap(PAGE, PAGE)), ENOENT)?;
    same(done(stage.core.ioas_unmap(space.iommufd, &unmap(0, 8 * PAGE)))?, 3 * PAGE)
}

fn bad_unmaps<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let space = stage.space()?;
    let good = IoasUnmap { ioas: space.ioas, iova: PAGE, length: PAGE };
    for (bad, errno) in [
        (good, ENOENT),
        (IoasUnmap { ioas: 9, ..good }, ENOENT),
        (IoasUnmap { length: 0, ..good }, EINVAL),
        (IoasUnmap { length: u64::MAX, ..good }, EOVERFLOW),
        (IoasUnmap { length: u64::MAX - 1, ..good }, EOVERFLOW),
        (IoasUnmap { iova: u64::MAX, ..good }, EOVERFLOW),
    ] {
        fails(stage.core.ioas_unmap(space.iommufd, &bad), errno)?;
    }
    Ok(())
}

fn ranges<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let Space { iommufd, ioas } = stage.space()?;
    let mut argument = words(&[32, ioas, 0, 0, 0, 0, 9, 9]);
    fails(stage.core.request(iommufd, IOVA_RANGES, &mut argument), EMSGSIZE)?;
    same(argument, words(&[32, ioas, 1, 0, 0, 0, 1, 0]))?;
    let mut argument = words(&[32, ioas, 0, 1, 0, 0, 0, 0]);
    fails(stage.core.request(iommufd, IOVA_RANGES, &mut argument), EOPNOTSUPP)?;
    let mut argument = words(&[32, 9, 0, 0, 0, 0, 0, 0]);
    fails(stage.core.request(iommufd, IOVA_RANGES, &mut argument), ENOENT)
}

fn allowed<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let space = stage.space()?;
    for (ranges, errno) in [
        (vec![[5, 5]], Some(EINVAL)),
        (vec![[0, 5], [5, 9]], Some(EINVAL)),
        (vec![[4 * PAGE, 5 * PAGE - 1], [0, 5]], None),
    ] {
        let count = u32::try_from(ranges.len()).unwrap_or(0);
        let mut argument = words(&[24, space.ioas, count, 0, 0, 0]);
        argument.extend(ranges.iter().flatten().flat_map(|edge: &u64| edge.to_ne_bytes()));
        let result = stage.core.request(space.iommufd, ALLOW_IOVAS, &mut argument);
        same(result.err().and_then(|error| error.raw_os_error()), errno)?;
    }
    let any = IoasMap { flags: 6, ..stage.area(space, 0, 1) };
    same(stage.map(space, &any)?, 4 * PAGE)?;
    fails(stage.core.ioas_map(space.iommufd, &any), libc::ENOSPC)
}

fn mode<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let iommufd = stage.iommufd()?;
    let option = |op, object, value| IommuOption { option: 0, op, object, value };
    same(done(stage.core.iommu_option(iommufd, &option(1, 0, 9)))?, 0)?;
    fails(stage.core.iommu_option(iommufd, &option(1, 1, 0)), EOPNOTSUPP)?;
    fails(stage.core.iommu_option(iommufd, &option(2, 0, 0)), EOPNOTSUPP)?;
    if !stage.scene.description.resource {
        return fails(stage.core.iommu_option(iommufd, &option(0, 0, 1)), EPERM);
    }
    fails(stage.core.iommu_option(iommufd, &option(0, 0, 2)), EINVAL)?;
    done(stage.core.iommu_option(iommufd, &option(0, 0, 1)))?;
    same(done(stage.core.iommu_option(iommufd, &option(1, 0, 9)))?, 1)?;
    done(stage.core.ioas_alloc(iommufd, 0))?;
    fails(stage.core.iommu_option(iommufd, &option(0, 0, 0)), EBUSY)
}

fn small_pages<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let space = stage.space()?;
    let option = |op, value| IommuOption { option: 1, op, object: space.ioas, value };
    same(done(stage.core.iommu_option(space.iommufd, &option(1, 9)))?, 1)?;
    fails(stage.core.iommu_option(space.iommufd, &option(0, 2)), EINVAL)?;
    let odd = IoasMap { length: 1, ..stage.area(space, 0, 1) };
    stage.map(space, &odd)?;
    fails(stage.core.iommu_option(space.iommufd, &option(0, 0)), libc::EADDRINUSE)?;
    stage.clear(space)?;
    done(stage.core.iommu_option(space.iommufd, &option(0, 0)))?;
    same(stage.ranges(space)?.1, PAGE)?;
    fails(stage.core.ioas_map(space.iommufd, &odd), EINVAL)?;
    done(stage.core.iommu_option(space.iommufd, &option(0, 1)))?;
    same(stage.ranges(space)?.1, 1)
}

fn sizes<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let Space { iommufd, ioas } = stage.space()?;
    for (number, size) in [(28, 8_u32), (29, 12), (30, 24), (32, 32), (33, 40), (34, 24), (35, 24)]
    {
        let mut argument = words(&[size.saturating_sub(1)]);
        argument.resize(size.saturating_add(8) as usize, 1);
        fails(stage.core.request(iommufd, number, &mut argument), EINVAL)?;
        let larger = size.saturating_add(8).to_ne_bytes();
        argument.iter_mut().zip(larger).for_each(|(to, from)| *to = from);
        fails(stage.core.request(iommufd, number, &mut argument), E2BIG)?;
    }
    let mut alloc = words(&[16, 0, 0, 0]);
    done(stage.core.request(iommufd, 29, &mut alloc))?;
    same(alloc, words(&[16, 0, 2, 0]))?;
    let mut map = words(&[40, FIXED, ioas, 1, 0, 0, 1, 0, 0, 0]);
    fails(stage.core.request(iommufd, 33, &mut map), EOPNOTSUPP)
}

/// `IOMMU_IOAS_CHANGE_PROCESS`
const CHANGE_PROCESS: u32 = 46;

fn process<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let (space, memory) = (stage.space()?, stage.memory(1)?);
    let Space { iommufd, ioas } = space;
    let change = |stage: &mut Stage<'_, C>, reserved| {
        stage.core.request(iommufd, CHANGE_PROCESS, &mut words(&[8, reserved]))
    };
    if !stage.kernel().changes_process() {
        return fails(change(stage, 0), ENOTTY);
    }
    fails(change(stage, 1), EOPNOTSUPP)?;
    done(change(stage, 0))?;
    let file = IoasMapFile { flags: FIXED, ioas, file: memory, start: 0, length: PAGE, iova: 0 };
    done(stage.core.ioas_map_file(iommufd, &file))?;
    done(change(stage, 0))?;
    let map = stage.area(space, PAGE, 1);
    stage.map(space, &map)?;
    fails(change(stage, 0), EINVAL)?;
    same(stage.clear(space)?, 2 * PAGE)?;
    done(change(stage, 0))
}

/// Before 6.13 the kernel has no such call, and the library maps by address.
fn files<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let (space, memory) = (stage.space()?, stage.memory(4)?);
    let Space { iommufd, ioas } = space;
    let good =
        IoasMapFile { flags: FIXED, ioas, file: memory, start: PAGE, length: 2 * PAGE, iova: 0 };
    if !stage.kernel().maps_files() {
        return fails(stage.core.ioas_map_file(iommufd, &good), ENOTTY);
    }
    for (bad, errno) in [
        (IoasMapFile { flags: 15, ..good }, EOPNOTSUPP),
        (IoasMapFile { iova: u64::MAX, ..good }, EOVERFLOW),
        (IoasMapFile { length: u64::MAX, ..good }, EOVERFLOW),
        (IoasMapFile { flags: 1, ..good }, EINVAL),
        (IoasMapFile { ioas: 9, ..good }, ENOENT),
        (IoasMapFile { length: 0, ..good }, EINVAL),
        (IoasMapFile { start: u64::MAX, file: Fd(-1), ..good }, EOVERFLOW),
        (IoasMapFile { file: Fd(-1), ..good }, EBADF),
        (IoasMapFile { length: u64::MAX - PAGE + 1, start: 0, ..good }, EINVAL),
        (IoasMapFile { iova: u64::MAX - 1, ..good }, EOVERFLOW),
    ] {
        fails(stage.core.ioas_map_file(iommufd, &bad), errno)?;
    }
    same(done(stage.core.ioas_map_file(iommufd, &good))?, 0)?;
    fails(stage.core.ioas_map_file(iommufd, &good), EEXIST)?;
    let chosen = IoasMapFile { flags: 6, start: 3 * PAGE, length: PAGE, ..good };
    same(done(stage.core.ioas_map_file(iommufd, &chosen))?, 2 * PAGE)?;
    // Without a device nobody looks at the file.
    let beyond = IoasMapFile { start: 1 << 30, iova: 8 * PAGE, ..good };
    done(stage.core.ioas_map_file(iommufd, &beyond))?;
    let other = IoasMapFile { file: iommufd, iova: 16 * PAGE, ..good };
    done(stage.core.ioas_map_file(iommufd, &other))?;
    same(stage.clear(space)?, 7 * PAGE)
}
