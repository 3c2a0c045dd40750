//! type1: maps, unmaps and the info of the IOMMU.

use std::ops::Range;

use libc::{EBUSY, EEXIST, EFAULT, EINVAL, ENOENT, ENOMEM, ENOSPC, EOVERFLOW};
use vfio_model::{MapDma, UnmapDma};

use super::{Check, Ready, Stage, Verdict, done, fails, same};
use crate::Core;
use crate::arena::{PAGE, READABLE, WRITABLE};

pub fn checks<C: Core>() -> Vec<Check<C>> {
    vec![
        ("a wrong map is refused", bad_maps),
        ("mappings do not overlap", overlap),
        ("a map is inside the IOVA ranges", iova_ranges),
        ("a map needs memory", no_memory),
        ("a wrong unmap is refused", bad_unmaps),
        ("an unmap does not bisect a mapping", bisect),
        ("version 1 unmaps mappings that begin in the range", version_1),
        ("the flag ALL unmaps everything", unmap_all),
        ("a vaddr is invalidated and renewed", vaddr),
        ("a group cannot join mappings without a vaddr", no_address),
        ("65536 mappings are too many", entries),
        ("IOMMU_GET_INFO reports its size", info),
        ("a map needs an IOMMU", no_iommu),
        ("the last group removes all mappings", gone),
    ]
}

/// The address of a page.
fn at(page: u64) -> u64 {
    page.saturating_mul(PAGE)
}

pub(super) fn map_of<C>(stage: &Stage<'_, C>, iova: u64, pages: u64) -> MapDma {
    MapDma { argsz: MapDma::ARGSZ, flags: 3, vaddr: stage.scene.arena.base, iova, size: at(pages) }
}

fn unmap_of(iova: u64, pages: u64) -> UnmapDma {
    UnmapDma { argsz: UnmapDma::ARGSZ, flags: 0, iova, size: at(pages) }
}

/// The last page of the address space.
const LAST: u64 = u64::MAX - (PAGE - 1);

fn bad_maps<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let Ready { container, .. } = stage.ready()?;
    let good = map_of(stage, 0, 1);
    for bad in [
        MapDma { argsz: 31, ..good },
        MapDma { flags: 0, ..good },
        MapDma { flags: 7, ..good },
        MapDma { flags: 11, ..good },
        MapDma { size: 0, ..good },
        MapDma { size: 1, ..good },
        MapDma { iova: 1, ..good },
        MapDma { vaddr: good.vaddr | 1, ..good },
        MapDma { iova: LAST, ..good },
    ] {
        fails(stage.core.map_dma(container, &bad), EINVAL)?;
    }
    for bad in [
        MapDma { iova: LAST, size: 2 * PAGE, ..good },
        MapDma { vaddr: LAST, size: 2 * PAGE, ..good },
    ] {
        fails(stage.core.map_dma(container, &bad), overflow_errno(stage))?;
    }
    let wraps = MapDma { iova: LAST, size: 2 * PAGE, flags: 0, ..good };
    fails(stage.core.map_dma(container, &wraps), overflow_errno(stage))
}

/// The errno for a range that ends beyond 2^64.
fn overflow_errno<C: Core>(stage: &Stage<'_, C>) -> i32 {
    if stage.kernel().checks_overflow() { EOVERFLOW } else { EINVAL }
}

fn overlap<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let Ready { container, .. } = stage.ready()?;
    let middle = map_of(stage, 4 * PAGE, 4);
    done(stage.core.map_dma(container, &middle))?;
    for (page, pages) in [(0, 5), (3, 2), (4, 4), (5, 1), (7, 9), (0, 16)] {
        let call = map_of(stage, at(page), pages);
        fails(stage.core.map_dma(container, &call), EEXIST)?;
    }
    for (page, pages) in [(0, 4), (8, 4)] {
        let call = map_of(stage, at(page), pages);
        done(stage.core.map_dma(container, &call))?;
    }
    Ok(())
}

fn iova_ranges<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let Ready { container, .. } = stage.ready()?;
    for range in stage.scene.description.iova_ranges.clone() {
        let inside = map_of(stage, range.end.saturating_sub(PAGE), 1);
        done(stage.core.map_dma(container, &inside))?;
        let outside = map_of(stage, range.end, 1);
        fails(stage.core.map_dma(container, &outside), EINVAL)?;
        let across = map_of(stage, range.end.saturating_sub(2 * PAGE), 4);
        fails(stage.core.map_dma(container, &across), EEXIST)?;
    }
    Ok(())
}

fn no_memory<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let Ready { container, .. } = stage.ready()?;
    let good = map_of(stage, 0, 2);
    let readable = good.vaddr.saturating_add(WRITABLE);
    let nothing = readable.saturating_add(READABLE);
    let [last_writable, last_readable] = [readable, nothing].map(|end| end.saturating_sub(PAGE));
    for (flags, vaddr) in [
        (3, readable),
        (2, readable),
        (3, last_writable),
        (1, nothing),
        (1, last_readable),
        (3, 0),
        (3, LAST - PAGE),
    ] {
        let call = MapDma { flags, vaddr, ..good };
        fails(stage.core.map_dma(container, &call), EFAULT)?;
    }
    let call = MapDma { flags: 1, vaddr: last_writable, ..good };
    done(stage.core.map_dma(container, &call))
}

fn bad_unmaps<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let Ready { container, .. } = stage.ready()?;
    let good = unmap_of(0, 1);
    for bad in [
        UnmapDma { argsz: 23, ..good },
        UnmapDma { flags: 1, ..good },
        UnmapDma { flags: 8, ..good },
        UnmapDma { size: 0, ..good },
        UnmapDma { size: 1, ..good },
        UnmapDma { iova: 1, ..good },
        UnmapDma { flags: 2, ..good },
    ] {
        fails(stage.core.unmap_dma(container, &bad), EINVAL)?;
    }
    let wraps = UnmapDma { iova: LAST, size: 2 * PAGE, ..good };
    fails(stage.core.unmap_dma(container, &wraps), overflow_errno(stage))?;
    same(done(stage.core.unmap_dma(container, &good))?, 0)
}

fn bisect<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let Ready { container, .. } = stage.ready()?;
    for page in [0, 2, 4] {
        let call = map_of(stage, at(page), 2);
        done(stage.core.map_dma(container, &call))?;
    }
    for (page, pages) in [(0, 1), (1, 1), (0, 3), (1, 5)] {
        fails(stage.core.unmap_dma(container, &unmap_of(at(page), pages)), EINVAL)?;
    }
    same(done(stage.core.unmap_dma(container, &unmap_of(0, 4)))?, 4 * PAGE)?;
    let to_the_end = UnmapDma { size: 0_u64.wrapping_sub(4 * PAGE), ..unmap_of(4 * PAGE, 0) };
    let found = if stage.kernel().checks_overflow() { 2 * PAGE } else { 0 };
    same(done(stage.core.unmap_dma(container, &to_the_end))?, found)?;
    same(
        done(stage.core.unmap_dma(container, &unmap_of(0, 100)))?,
        (2 * PAGE).saturating_sub(found),
    )
}

fn version_1<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let (container, group) = (stage.container()?, stage.group(0)?);
    done(stage.core.set_container(group, container))?;
    done(stage.core.set_iommu(container, 1))?;
    let call = map_of(stage, 0, 4);
    done(stage.core.map_dma(container, &call))?;
    same(done(stage.core.unmap_dma(container, &unmap_of(PAGE, 1)))?, 0)?;
    same(done(stage.core.unmap_dma(container, &unmap_of(0, 1)))?, 4 * PAGE)
}

fn unmap_all<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let Ready { container, .. } = stage.ready()?;
    for iova in [0, 1 << 30] {
        let call = map_of(stage, iova, 2);
        done(stage.core.map_dma(container, &call))?;
    }
    let all = UnmapDma { flags: 2, ..unmap_of(0, 0) };
    if !stage.kernel().has_unmap_flags() {
        return fails(stage.core.unmap_dma(container, &all), EINVAL);
    }
    same(done(stage.core.unmap_dma(container, &all))?, 4 * PAGE)?;
    same(done(stage.core.unmap_dma(container, &all))?, 0)
}

fn vaddr<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let Ready { container, .. } = stage.ready()?;
    let renew = MapDma { flags: 4, ..map_of(stage, 0, 2) };
    if !stage.kernel().has_unmap_flags() {
        return fails(stage.core.map_dma(container, &renew), EINVAL);
    }
    fails(stage.core.map_dma(container, &renew), ENOENT)?;
    let call = map_of(stage, 0, 2);
    done(stage.core.map_dma(container, &call))?;
    fails(stage.core.map_dma(container, &renew), EINVAL)?;
    let take = UnmapDma { flags: 4, ..unmap_of(0, 2) };
    same(done(stage.core.unmap_dma(container, &take))?, 2 * PAGE)?;
    fails(stage.core.unmap_dma(container, &take), EINVAL)?;
    done(stage.core.map_dma(container, &renew))?;
    same(done(stage.core.unmap_dma(container, &unmap_of(0, 2)))?, 2 * PAGE)
}

fn no_address<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let (Ready { container, .. }, second) = (stage.ready()?, stage.group(1)?);
    let call = map_of(stage, 0, 1);
    done(stage.core.map_dma(container, &call))?;
    let take = UnmapDma { flags: 4, ..unmap_of(0, 1) };
    if !stage.kernel().has_unmap_flags() {
        return fails(stage.core.unmap_dma(container, &take), EINVAL);
    }
    done(stage.core.unmap_dma(container, &take))?;
    fails(stage.core.set_container(second, container), EBUSY)?;
    done(stage.core.unmap_dma(container, &unmap_of(0, 1)))?;
    done(stage.core.set_container(second, container))
}

/// A limit of locked memory applies first, because it counts every mapping of a page.
fn entries<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let Ready { container, .. } = stage.ready()?;
    let description = &stage.scene.description;
    let by_memory = description.locked_memory.map(|limit| limit / PAGE);
    let most = by_memory.unwrap_or(u64::MAX).min(description.dma_entries.into());
    let errno = if by_memory == Some(most) { ENOMEM } else { ENOSPC };
    // The first gap of an SMMU, for its MSI doorbell, is at 128 MiB.
    let size = most.saturating_add(1).saturating_mul(PAGE);
    let mut ranges = description.iova_ranges.iter();
    let has_room = |range: &&Range<u64>| range.end.saturating_sub(range.start) >= size;
    let first = ranges.find(has_room).map_or(0, |range| range.start);
    for page in 0..most {
        let call = map_of(stage, first.saturating_add(at(page)), 1);
        done(stage.core.map_dma(container, &call))?;
    }
    let more = map_of(stage, first.saturating_add(at(most)), 1);
    fails(stage.core.map_dma(container, &more), errno)
}

fn info<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let Ready { container, .. } = stage.ready()?;
    let mut short = 16_u32.to_ne_bytes().to_vec();
    short.resize(64, 0xa5);
    done(stage.core.iommu_info(container, &mut short))?;
    same(short.get(16..24), Some([0xa5; 8].as_slice()))?;
    let mut none = 15_u32.to_ne_bytes().to_vec();
    none.resize(64, 0);
    fails(stage.core.iommu_info(container, &mut none), EINVAL)
}

fn no_iommu<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let (container, group) = (stage.container()?, stage.group(0)?);
    let map = map_of(stage, 0, 1);
    fails(stage.core.map_dma(container, &map), EINVAL)?;
    done(stage.core.set_container(group, container))?;
    fails(stage.core.map_dma(container, &map), EINVAL)?;
    fails(stage.core.unmap_dma(container, &unmap_of(0, 1)), EINVAL)
}

fn gone<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let Ready { container, group } = stage.ready()?;
    let map = map_of(stage, 0, 1);
    done(stage.core.map_dma(container, &map))?;
    done(stage.core.unset_container(group))?;
    done(stage.core.set_container(group, container))?;
    done(stage.core.set_iommu(container, 3))?;
    done(stage.core.map_dma(container, &map))
}
