//! The memory that is mapped for DMA: some that can be written, some that can only be read, then none.

use std::io;

use std::ops::Range;

/// The page size of the CPU and of IOMMUs.
pub const PAGE: u64 = 4096;
/// Bytes that can be written.
pub const WRITABLE: u64 = 64 * PAGE;
/// Bytes behind them that can only be read.
pub const READABLE: u64 = 16 * PAGE;
/// Addresses kept free before and behind that, so that no map meets other memory of the process.
const BEFORE: u64 = 1 << 20;
const BEHIND: u64 = 1 << 40;

/// Where the memory is. It is never given back: a kernel may have it mapped until the process ends.
#[derive(Clone, Copy, Debug)]
pub struct Arena {
    /// Its first address.
    pub base: u64,
}

impl Arena {
    /// One that only the model uses: there is no memory.
    #[must_use]
    pub fn imagined() -> Self {
        Self { base: 0x7f00_0000_0000 }
    }

    /// One of real memory.
    pub fn reserve() -> io::Result<Self> {
        let base = reserve(BEFORE + BEHIND)?.wrapping_add(BEFORE);
        protect(base, WRITABLE + READABLE, libc::PROT_READ | libc::PROT_WRITE)?;
        let pages = (0..WRITABLE + READABLE).step_by(4096).map(|offset| base.wrapping_add(offset));
        pages.for_each(touch);
        protect(base.wrapping_add(WRITABLE), READABLE, libc::PROT_READ)?;
        Ok(Self { base })
    }

    /// As the model is told of it.
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
    // SAFETY: a mapping at an address of the kernel's choice touches no memory that there is.
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
    // SAFETY: the range is a part of what `reserve` returned, to which nothing in the program refers.
    match unsafe { libc::mprotect(address, size, protection) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes a page be there: one that was only read would be the kernel's page of zeroes, which is not counted.
fn touch(address: u64) {
    let pointer = std::ptr::with_exposed_provenance_mut::<u8>(address as usize);
    // SAFETY: the page was just made writable by `protect`, and nothing refers to it.
    unsafe { pointer.write_volatile(1) };
}
