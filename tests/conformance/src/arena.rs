//! The memory that checks map for DMA: writable pages, read-only pages, then no memory.

use std::io;

use std::ops::Range;

/// The page size of the CPU and of IOMMUs.
pub const PAGE: u64 = 4096;
/// The bytes of writable memory.
pub const WRITABLE: u64 = 64 * PAGE;
/// The bytes of read-only memory after it.
pub const READABLE: u64 = 16 * PAGE;
/// Reserved addresses before and after the memory, so that no map reaches other memory of the
/// process.
const BEFORE: u64 = 1 << 20;
const BEHIND: u64 = 1 << 40;

/// The memory. It is never freed, because a kernel may have it mapped until the process ends.
#[derive(Clone, Copy, Debug)]
pub struct Arena {
    /// The first address.
    pub base: u64,
}

impl Arena {
    /// An arena without memory, for the model only.
    #[must_use]
    pub fn imagined() -> Self {
        Self { base: 0x7f00_0000_0000 }
    }

    /// An arena of real memory.
    pub fn reserve() -> io::Result<Self> {
        let base = reserve(BEFORE + BEHIND)?.wrapping_add(BEFORE);
        protect(base, WRITABLE + READABLE, libc::PROT_READ | libc::PROT_WRITE)?;
        let pages = (0..WRITABLE + READABLE).step_by(4096).map(|offset| base.wrapping_add(offset));
        pages.for_each(touch);
        protect(base.wrapping_add(WRITABLE), READABLE, libc::PROT_READ)?;
        Ok(Self { base })
    }

    /// The memory for a description of the model.
    #[must_use]
    pub fn memory(&self) -> Vec<(Range<u64>, bool)> {
        let writable = self.base.saturating_add(WRITABLE);
        let readable = writable.saturating_add(READABLE);
        vec![(self.base..writable, true), (writable..readable, false)]
    }
}

fn reserve(size: u64) -> io::Result<u64> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let size = usize::try_from(size).map_err(io::Error::other)?;
    // SAFETY: the kernel picks a free range, so that no existing memory is mapped over.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), size, libc::PROT_NONE, flags, -1, 0) };
    match base == libc::MAP_FAILED {
        true => Err(io::Error::last_os_error()),
        false => Ok(base.expose_provenance() as u64),
    }
}

fn protect(base: u64, size: u64, protection: i32) -> io::Result<()> {
    let size = usize::try_from(size).map_err(io::Error::other)?;
    let address =
        std::ptr::with_exposed_provenance_mut(usize::try_from(base).map_err(io::Error::other)?);
    // SAFETY: the range is a part of what `reserve` returned, to which nothing in the program
    // refers.
    match unsafe { libc::mprotect(address, size, protection) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Writes a page, so that it exists. The kernel does not count its page of zeroes, which a read
/// would map.
fn touch(address: u64) {
    let pointer = std::ptr::with_exposed_provenance_mut::<u8>(address as usize);
    // SAFETY: the page was just made writable by `protect`, and nothing refers to it.
    unsafe { pointer.write_volatile(1) };
}
