//! Dirty pages of type1, which it tracks since 5.8.

use std::io;

use libc::{EACCES, EINVAL, ENOTTY, EOVERFLOW};
use vfio_model::Fd;

use super::dma::map_of;
use super::{Check, Ready, Stage, Verdict, done, fails, same};
use crate::Core;
use crate::arena::PAGE;

pub fn checks<C: Core>() -> Vec<Check<C>> {
    vec![
        ("dirty pages are tracked from a start to a stop", start_and_stop),
        ("all pages of a mapping are dirty", all_dirty),
        ("a wrong bitmap of dirty pages is refused", bad_bitmaps),
        ("version 1 tracks no dirty pages", version_1),
    ]
}

/// `VFIO_IOMMU_DIRTY_PAGES`, and its flags.
const DIRTY_PAGES: u32 = 17;
const START: u32 = 1;
const STOP: u32 = 2;
const GET_BITMAP: u32 = 4;

/// The size of the struct with a range.
const WITH_RANGE: u32 = 48;

impl<C: Core> Stage<'_, C> {
    /// A call without a range.
    fn track(&mut self, container: Fd, argsz: u32, flags: u32) -> io::Result<()> {
        let mut bytes: Vec<u8> = [argsz, flags].into_iter().flat_map(u32::to_ne_bytes).collect();
        bytes.resize(64, 0);
        self.core.request(container, DIRTY_PAGES, &mut bytes)
    }

    /// The bitmap of some pages, which held ones before. `page` is the size of a page, and `room`
    /// the size of the bitmap, as the struct states them.
    fn bitmap(
        &mut self,
        container: Fd,
        (iova, pages): (u64, u64),
        [page, room]: [u64; 2],
    ) -> io::Result<u64> {
        let header = [WITH_RANGE, GET_BITMAP].into_iter().flat_map(u32::to_ne_bytes);
        let range = [iova, pages.wrapping_mul(PAGE), page, room, 0, u64::MAX];
        let mut bytes: Vec<u8> =
            header.chain(range.into_iter().flat_map(u64::to_ne_bytes)).collect();
        self.core.request(container, DIRTY_PAGES, &mut bytes)?;
        let word = bytes.get(WITH_RANGE as usize..).and_then(|bitmap| bitmap.first_chunk());
        Ok(word.map_or(0, |word| u64::from_ne_bytes(*word)))
    }

    /// A container with two pages mapped at 0, and one three pages further.
    #[track_caller]
    fn mapped(&mut self) -> Result<Fd, String> {
        let Ready { container, .. } = self.ready()?;
        for (iova, pages) in [(0, 2), (3 * PAGE, 1)] {
            let map = map_of(self, iova, pages);
            done(self.core.map_dma(container, &map))?;
        }
        Ok(container)
    }
}

fn start_and_stop<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let container = stage.mapped()?;
    if !stage.kernel().tracks_dirty_pages() {
        return fails(stage.track(container, 8, START), ENOTTY);
    }
    for (argsz, flags) in [(7, START), (8, START | STOP), (8, 8), (8, GET_BITMAP), (47, GET_BITMAP)]
    {
        fails(stage.track(container, argsz, flags), EINVAL)?;
    }
    for (flags, tracked) in [(STOP, false), (START, true), (START, true), (STOP, false)] {
        done(stage.track(container, 8, flags))?;
        let found = stage.bitmap(container, (0, 8), [PAGE, 8]);
        match tracked {
            true => done(found).map(drop)?,
            false => fails(found, EINVAL)?,
        }
    }
    Ok(())
}

/// The kernel copies whole words: it clears the bits behind a mapping, and leaves words without a
/// mapping.
fn all_dirty<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let container = stage.mapped()?;
    if !stage.kernel().tracks_dirty_pages() {
        return Ok(());
    }
    done(stage.track(container, 8, START))?;
    same(done(stage.bitmap(container, (0, 8), [PAGE, 8]))?, 0b1011)?;
    same(done(stage.bitmap(container, (8 * PAGE, 8), [PAGE, 8]))?, u64::MAX)
}

fn bad_bitmaps<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let container = stage.mapped()?;
    if !stage.kernel().tracks_dirty_pages() {
        return Ok(());
    }
    done(stage.track(container, 8, START))?;
    let overflow = if stage.kernel().checks_overflow() { EOVERFLOW } else { EINVAL };
    for (range, sizes, errno) in [
        ((0, 8), [2 * PAGE, 8], EINVAL),
        ((0, 8), [PAGE, 0], EINVAL),
        ((0, 65), [PAGE, 8], EINVAL),
        ((0, 8), [PAGE, 1 << 30], EINVAL),
        ((0, 0), [PAGE, 8], EINVAL),
        ((1, 8), [PAGE, 8], EINVAL),
        ((PAGE, 4), [PAGE, 8], EINVAL),
        ((0, 1), [PAGE, 8], EINVAL),
        ((0_u64.wrapping_sub(PAGE), 2), [PAGE, 8], overflow),
    ] {
        fails(stage.bitmap(container, range, sizes), errno)?;
    }
    Ok(())
}

fn version_1<C: Core>(stage: &mut Stage<'_, C>) -> Verdict {
    let (container, group) = (stage.container()?, stage.group(0)?);
    done(stage.core.set_container(group, container))?;
    done(stage.core.set_iommu(container, 1))?;
    let errno = if stage.kernel().tracks_dirty_pages() { EACCES } else { ENOTTY };
    fails(stage.track(container, 8, START), errno)
}
