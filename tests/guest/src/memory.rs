//! A locked page of memory with a known physical address, for DMA.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use nix::sys::mman::MlockAllFlags;
use nix::sys::mman::mlockall;

use crate::system::Error;

const PAGE: usize = 4096;
const PAGEMAP: &str = "/proc/self/pagemap";
/// Bits of an entry of the page map (Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
const FRAME: u64 = (1 << 55) - 1;

#[repr(C, align(4096))]
struct Aligned([u32; PAGE / 4]);

/// The number of words of half a page.
pub const HALF: u32 = 512;

/// A locked page.
pub struct Page(Box<Aligned>);

impl Page {
    /// Allocates a page of zeros. Locks all memory of the process.
    pub fn new() -> Result<Self, Error> {
        mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE)
            .map_err(|errno| Error::file("lock", "memory")(errno.into()))?;
        Ok(Self(Box::new(Aligned([0; PAGE / 4]))))
    }

    /// The physical address of the page.
    pub fn physical(&self) -> Result<u64, Error> {
        let index = (&raw const *self.0).addr() / PAGE;
        let mut entry = [0; 8];
        let file = File::open(PAGEMAP).map_err(Error::file("open", PAGEMAP))?;
        file.read_exact_at(&mut entry, (index as u64).saturating_mul(8))
            .map_err(Error::file("read", PAGEMAP))?;
        let entry = u64::from_le_bytes(entry);
        let missing =
            || Error::file("find a page in", PAGEMAP)(std::io::ErrorKind::NotFound.into());
        let frame = (entry & PRESENT != 0).then_some(entry & FRAME).filter(|frame| *frame != 0);
        Ok(frame.ok_or_else(missing)?.saturating_mul(PAGE as u64))
    }

    /// Fills the first half with words that depend on their position and on `seed`. DMA of an edu
    /// moves half a page, because the device refuses to fill its buffer to the last byte.
    pub fn fill(&mut self, seed: u32) {
        for (word, at) in self.0.0.iter_mut().zip(0..HALF) {
            // A device reads the page by DMA, which the compiler does not see.
            // SAFETY: `word` is a valid, aligned reference.
            unsafe { std::ptr::write_volatile(word, value(seed, at)) };
        }
    }

    /// The first word.
    pub fn first(&self) -> u32 {
        let [first, ..] = &self.0.0;
        // A device writes the page by DMA, which the compiler does not see.
        // SAFETY: `first` is a valid, aligned reference.
        unsafe { std::ptr::read_volatile(first) }
    }

    /// Whether the first half has the words that [`fill`](Self::fill) writes.
    pub fn is_filled(&self, seed: u32) -> bool {
        // A device writes the page by DMA, which the compiler does not see.
        // SAFETY: `word` is a valid, aligned reference.
        let word = |word: &u32| unsafe { std::ptr::read_volatile(word) };
        self.0.0.iter().zip(0..HALF).all(|(own, at)| word(own) == value(seed, at))
    }
}

/// The word at index `at` of a filled page.
pub fn value(seed: u32, at: u32) -> u32 {
    at.wrapping_mul(0x9e37_79b9) ^ seed
}
