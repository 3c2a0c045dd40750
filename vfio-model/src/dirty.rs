//! Dirty pages of type1: which pages devices may have written (`vfio_iommu_type1_dirty_pages`).

use std::io;

use vfio_bindings::bindings::vfio as sys;

use crate::errno::errno;
use crate::files::Fd;
use crate::info::word;
use crate::ioctl::long;
use crate::kernel::Kernel;
use crate::state::System;
use crate::type1::{DIRTY_BITMAP_MAX, Type1};

const START: u32 = sys::VFIO_IOMMU_DIRTY_PAGES_FLAG_START;
const STOP: u32 = sys::VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP;
const GET: u32 = sys::VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP;

/// The sizes of `struct vfio_iommu_type1_dirty_bitmap` alone, and with
/// `struct vfio_iommu_type1_dirty_bitmap_get`.
const ALONE: u32 = 8;
const WITH_RANGE: u32 = 48;

/// The pages whose bits a `u64` of a bitmap holds.
const WORD: u64 = 64;

/// `struct vfio_iommu_type1_dirty_bitmap_get`.
struct Request {
    iova: u64,
    size: u64,
    page: u64,
    /// The size of the bitmap in bytes.
    bytes: u64,
}

impl Request {
    fn of(buffer: &[u8]) -> Self {
        let [iova, size, page, bytes] = [8, 16, 24, 32].map(|at| long(buffer, at));
        Self { iova, size, page, bytes }
    }

    /// The end of the range must fit into 64 bits; in 7.3 it may be 2^64.
    fn check_end(&self, kernel: Kernel) -> io::Result<()> {
        let last = self.iova.checked_add(self.size.saturating_sub(1));
        match (kernel.checks_overflow(), last) {
            (true, None) if self.size > 0 => Err(errno(libc::EOVERFLOW)),
            (false, _) if self.iova.checked_add(self.size).is_none() => Err(errno(libc::EINVAL)),
            _ => Ok(()),
        }
    }

    /// `verify_bitmap_size`.
    fn has_room(&self) -> bool {
        let pages = self.size.checked_shr(self.page.trailing_zeros()).unwrap_or(0);
        let needed = pages.div_ceil(WORD).saturating_mul(8);
        pages > 0 && (needed.max(1)..=DIRTY_BITMAP_MAX).contains(&self.bytes)
    }
}

impl System {
    /// `VFIO_IOMMU_DIRTY_PAGES` (`vfio_iommu_type1_dirty_pages`): starts or stops the tracking, or
    /// reads a bitmap. The buffer holds `struct vfio_iommu_type1_dirty_bitmap`; a bitmap lies
    /// behind it, at its `argsz`. All pages of a mapping are dirty, because vfio-pci cannot tell
    /// which pages a device has written.
    ///
    /// # Errors
    ///
    /// In the order in which the kernel checks:
    /// - `ENOTTY`: the kernel has no such call, or an iommufd is the container.
    /// - `EACCES`: the IOMMU is of version 1.
    /// - `EINVAL`: `argsz` is too small, or there is not one flag.
    /// - `EINVAL`, in 7.3 `EOVERFLOW`: the range ends beyond 2^64.
    /// - `EINVAL`: the bitmap has the wrong size, the page is not the IOMMU's smallest, the range is
    ///   not aligned or bisects a mapping, or nothing is tracked.
    pub fn dirty_pages(&self, container: Fd, buffer: &mut [u8]) -> io::Result<()> {
        let mut state = self.state();
        let kernel = state.description.kernel;
        if !kernel.tracks_dirty_pages() || state.as_iommufd(container).is_some() {
            return state.unknown_ioctl(container);
        }
        state.type1(container, |type1, _, _| type1.dirty_pages(buffer, kernel))
    }
}

impl Type1 {
    fn dirty_pages(&mut self, buffer: &mut [u8], kernel: Kernel) -> io::Result<()> {
        let (argsz, flags) = (word(buffer, 0), word(buffer, 4));
        if !self.v2 {
            return Err(errno(libc::EACCES));
        }
        match flags {
            _ if argsz < ALONE => return Err(errno(libc::EINVAL)),
            START => self.tracks_dirty_pages = true,
            STOP => self.tracks_dirty_pages = false,
            GET if argsz >= WITH_RANGE => return self.dirty_bitmap(buffer, kernel),
            _ => return Err(errno(libc::EINVAL)),
        }
        Ok(())
    }

    fn dirty_bitmap(&self, buffer: &mut [u8], kernel: Kernel) -> io::Result<()> {
        let request = Request::of(buffer);
        request.check_end(kernel)?;
        let Request { iova, size, page, .. } = request;
        let is_aligned = (iova | size) & self.page_mask() == 0;
        let is_valid = request.has_room() && page == self.page_mask().wrapping_add(1);
        if !is_valid || !is_aligned || !self.tracks_dirty_pages || self.bisects(iova, size) {
            return Err(errno(libc::EINVAL));
        }
        let argsz = word(buffer, 0) as usize;
        let bitmap = buffer.get_mut(argsz..).unwrap_or_default();
        let pages = |bytes: u64| bytes.checked_shr(page.trailing_zeros()).unwrap_or(0);
        for (start, mapping) in self.covered(iova, size) {
            let first = pages(start.wrapping_sub(iova));
            mark(bitmap, first, first.saturating_add(pages(mapping.size)));
        }
        Ok(())
    }
}

/// Sets the bits of these pages, and clears those behind them in the last word, as
/// `update_user_bitmap` does, which copies whole words.
fn mark(bitmap: &mut [u8], first: u64, end: u64) {
    for page in first..end.checked_next_multiple_of(WORD).unwrap_or(end) {
        let byte = usize::try_from(page / 8).ok().and_then(|at| bitmap.get_mut(at));
        let bit = 1_u8.wrapping_shl((page % 8) as u32);
        match byte {
            Some(byte) if page < end => *byte |= bit,
            Some(byte) => *byte &= !bit,
            None => return,
        }
    }
}
