//! An iommufd as the container of groups.

use libc::{EBUSY, EEXIST, EINVAL, ENODEV, ENOENT, EPERM};
use vfio_model::{BindIommufd, Fd, MapDma, UnmapDma};

use super::iommufd::Space;
use super::{Check, Stage, Verdict, done, fails, same};
use crate::Core;
use crate::arena::PAGE;

pub fn checks<C: Core>() -> Vec<Check<C>> {
    vec![
        ("an iommufd is a container", container),
        ("a group of an iommufd attaches its devices", attached),
        ("version 1 of an iommufd bisects areas", version_1),
        ("a device does not hold a group of an iommufd", not_held),
        ("the info of an iommufd has the capabilities that fit", info),
    ]
}

impl<C: Core> Stage<'_, C> {
    /// The first group, whose container is an iommufd. Its address space is the first object.
    #[track_caller]
    fn compat(&mut self) -> Result<(Space, Fd), String> {
        let (iommufd, group) = (self.iommufd()?, self.group(0)?);
        done(self.core.set_container(group, iommufd))?;
        Ok((Space { iommufd, ioas: 1 }, group))
    }

    fn pages(&self, iova: u64, pages: u64) -> MapDma {
        let size = pages.saturating_mul(PAGE);
        MapDma { argsz: MapDma::ARGSZ, flags: 3, vaddr: self.scene.arena.base, iova, size }
    }
}

fn unmap_of(iova: u64, size: u64) -> UnmapDma {
    UnmapDma { argsz: UnmapDma::ARGSZ, flags: 0, iova, size }
}

fn container<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let (iommufd, group) = (stage.iommufd()?, stage.group(0)?);
    same(done(stage.core.api_version(iommufd))?, 0)?;
    for (extension, there) in [(0, 0), (1, 1), (3, 1), (6, 0), (8, 1), (9, 1), (10, 0)] {
        same(
            (extension, done(stage.core.check_extension(iommufd, extension))?),
            (extension, there),
        )?;
    }
    fails(stage.core.check_extension(iommufd, 4), ENODEV)?;
    fails(stage.core.set_iommu(iommufd, 3), ENODEV)?;
    fails(stage.core.set_iommu(iommufd, 6), EINVAL)?;
    let map = stage.pages(0, 1);
    fails(stage.core.map_dma(iommufd, &map), ENODEV)?;
    done(stage.core.set_container(group, iommufd))?;
    fails(stage.core.set_container(group, iommufd), EINVAL)?;
    same(done(stage.core.group_status(group, 8))?, 3)?;
    done(stage.core.set_iommu(iommufd, 3))?;
    same(done(stage.core.ioas_alloc(iommufd, 0))?, 2)?;
    done(stage.core.unset_container(group))?;
    fails(stage.core.unset_container(group), EINVAL)
}

fn attached<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let (space, group) = stage.compat()?;
    let map = stage.pages(0, 2);
    done(stage.core.map_dma(space.iommufd, &map))?;
    fails(stage.core.map_dma(space.iommufd, &map), EEXIST)?;
    let name = stage.device_of(0)?;
    let device = stage.device(group, &name)?;
    same(stage.ranges(space)?.1, PAGE)?;
    fails(stage.core.iommu_destroy(space.iommufd, space.ioas), EBUSY)?;
    fails(stage.core.unmap_dma(space.iommufd, &unmap_of(0, PAGE)), ENOENT)?;
    same(done(stage.core.unmap_dma(space.iommufd, &unmap_of(8 * PAGE, PAGE)))?, 0)?;
    let none = MapDma { flags: 0, ..stage.pages(8 * PAGE, 1) };
    fails(stage.core.map_dma(space.iommufd, &none), EINVAL)?;
    stage.close(device)?;
    same(stage.ranges(space)?.1, 1)?;
    done(stage.core.iommu_destroy(space.iommufd, space.ioas))?;
    fails(stage.core.open_device(group, &name), ENODEV)
}

fn version_1<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let (Space { iommufd, .. }, _) = stage.compat()?;
    done(stage.core.set_iommu(iommufd, 1))?;
    let map = stage.pages(0, 4);
    done(stage.core.map_dma(iommufd, &map))?;
    same(done(stage.core.unmap_dma(iommufd, &unmap_of(PAGE, 2 * PAGE)))?, 2 * PAGE)?;
    let all = UnmapDma { flags: 2, ..unmap_of(0, 0) };
    same(done(stage.core.unmap_dma(iommufd, &all))?, 2 * PAGE)?;
    fails(stage.core.unmap_dma(iommufd, &UnmapDma { flags: 2, ..unmap_of(0, PAGE) }), EINVAL)?;
    fails(stage.core.unmap_dma(iommufd, &UnmapDma { flags: 4, ..unmap_of(0, PAGE) }), EINVAL)?;
    fails(stage.core.unmap_dma(iommufd, &unmap_of(0, 0)), EINVAL)
}

fn not_held<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let (Space { iommufd, .. }, group) = stage.compat()?;
    let name = stage.device_of(0)?;
    let device = stage.device(group, &name)?;
    let cdev = stage.cdev(0)?;
    let bind = BindIommufd::to(iommufd);
    fails(stage.core.bind_iommufd(cdev, &bind), EBUSY)?;
    stage.close(group)?;
    fails(stage.core.bind_iommufd(cdev, &bind), EINVAL)?;
    let (group, container) = (stage.group(0)?, stage.container()?);
    same(done(stage.core.group_status(group, 8))?, 0)?;
    fails(stage.core.set_container(group, container), EPERM)?;
    stage.close(device)?;
    done(stage.core.set_container(group, container))
}

/// A struct of 24 bytes, the number of free mappings in 16, then one range.
fn info<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let (Space { iommufd, .. }, _) = stage.compat()?;
    let word = |bytes: &[u8], at: usize| {
        let word = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
        word.map_or(0, |word| u32::from_ne_bytes(*word))
    };
    for (room, first, next) in [(16, 0, 0), (40, 0, 40), (71, 0, 40), (72, 24, 40)] {
        let mut buffer = super::iommufd::words(&[room]);
        buffer.resize(128, 0);
        done(stage.core.iommu_info(iommufd, &mut buffer))?;
        let found = [0, 4, 16, 28].map(|at| word(&buffer, at));
        same((room, found), (room, [72, 3, first, next]))?;
    }
    fails(stage.core.iommu_info(iommufd, &mut super::iommufd::words(&[15, 0, 0, 0])), EINVAL)
}
