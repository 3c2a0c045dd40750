//! A region of a device, mapped into this process.

use std::any::Any;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::host::HostMemory;

/// The smallest size for which the alignment matters: since Linux 6.12 vfio-pci maps PFNs in units
/// of 2 MiB and 1 GiB (vfio_pci_mmap_huge_fault), if both addresses are aligned.
const SMALLEST_HUGE: usize = 2 << 20;
/// The largest useful alignment: x86 and arm64 have no larger page.
const LARGEST_HUGE: usize = 1 << 30;

/// The page size of the host, in bytes.
pub(crate) fn host_page_size() -> u64 {
    // SAFETY: sysconf has no preconditions.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    // sysconf does not fail for this name. 4096 is the smallest page size of Linux.
    u64::try_from(size).unwrap_or(4096)
}

/// Part of a region, mapped shared and read-write into this process. It holds the device. Dropping
/// it unmaps the memory.
#[derive(Debug)]
pub struct RegionMmap {
    address: *mut u8,
    size: usize,
    device: Mutex<Option<Arc<dyn Any + Send + Sync>>>,
}

// SAFETY: the value owns its address range, which is not tied to a thread, and it gives out raw
// pointers only.
unsafe impl Send for RegionMmap {}
// SAFETY: as for Send; the address and the size do not change, and the device is behind a lock.
unsafe impl Sync for RegionMmap {}

// SAFETY: `new` mapped the range with MAP_SHARED. This value owns it, and unmaps it in `drop` only.
// `replace_by_zeros` keeps the range mapped and shared. No reference to the memory is made here.
unsafe impl HostMemory for RegionMmap {
    fn host_address(&self) -> *mut u8 {
        self.address
    }

    fn size(&self) -> u64 {
        self.size as u64
    }
}

/// A mapped part of a region, with its dma-buf, for an address space that maps files.
pub(crate) struct ExportedMmap {
    mmap: Arc<RegionMmap>,
    dma_buf: File,
}

impl ExportedMmap {
    /// `dma_buf` is that of the same range.
    pub(crate) fn new(mmap: Arc<RegionMmap>, dma_buf: File) -> Self {
        Self { mmap, dma_buf }
    }
}

// SAFETY: `RegionMmap` fulfils the contract, and this value holds it.
unsafe impl HostMemory for ExportedMmap {
    fn host_address(&self) -> *mut u8 {
        self.mmap.host_address()
    }

    fn size(&self) -> u64 {
        self.mmap.size()
    }

    fn file(&self) -> Option<(BorrowedFd<'_>, u64)> {
        Some((self.dma_buf.as_fd(), 0))
    }
}

impl RegionMmap {
    /// Maps `size` bytes of `file` from `position` on. `offset` is their offset in the region. The
    /// address is chosen such that the region's start would be aligned, so that huge pages of the
    /// region match huge pages of this process.
    ///
    /// # Errors
    ///
    /// The errno of `mmap`, or `EINVAL` if a number does not fit its type.
    pub(crate) fn new(
        device: Arc<dyn Any + Send + Sync>,
        file: BorrowedFd<'_>,
        position: u64,
        offset: u64,
        size: u64,
    ) -> io::Result<Self> {
        let invalid = |_| io::Error::from_raw_os_error(libc::EINVAL);
        let size = usize::try_from(size).map_err(invalid)?;
        let position = libc::off_t::try_from(position).map_err(invalid)?;
        let device = Mutex::new(Some(device));
        let alignment = alignment(size);
        if alignment == 1 {
            let address = map(ptr::null_mut(), size, 0, file, position)?;
            return Ok(Self { address, size, device });
        }
        let skip = usize::try_from(offset).map_err(invalid)? & alignment.saturating_sub(1);
        let reservation = Reservation::new(size.saturating_add(alignment))?;
        let address =
            map(reservation.aligned(alignment, skip), size, libc::MAP_FIXED, file, position)?;
        reservation.keep(address, size);
        Ok(Self { address, size, device })
    }

    /// Replaces the device's memory by zeros, and drops the device. The range stays mapped, so that
    /// a holder of its address can access neither the device nor another mapping of this process.
    ///
    /// # Errors
    ///
    /// The errno of `mmap`. The device's memory stays mapped.
    pub(crate) fn replace_by_zeros(&self) -> io::Result<()> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        // SAFETY: this value owns the mapping. No code relies on its contents, which are a
        // device's. MAP_FIXED replaces it by other shared memory atomically.
        let result = unsafe { libc::mmap(self.address.cast(), self.size, access, flags, -1, 0) };
        if result == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        *self.device.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }
}

impl Drop for RegionMmap {
    fn drop(&mut self) {
        unmap(self.address, self.size);
    }
}

/// The alignment for a mapping of this size; 1 if the alignment does not matter.
fn alignment(size: usize) -> usize {
    if size < SMALLEST_HUGE {
        1
    } else {
        size.checked_next_power_of_two().unwrap_or(LARGEST_HUGE).min(LARGEST_HUGE)
    }
}

fn map(
    address: *mut u8,
    size: usize,
    fixed: i32,
    file: BorrowedFd<'_>,
    position: libc::off_t,
) -> io::Result<*mut u8> {
    let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | fixed);
    // SAFETY: with MAP_FIXED the range is inside a reservation that the caller owns and no code
    // uses. Without MAP_FIXED the kernel chooses a free range. In both cases no existing object is
    // replaced.
    let result =
        unsafe { libc::mmap(address.cast(), size, access, flags, file.as_raw_fd(), position) };
    if result == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(result.cast()) }
}

fn unmap(address: *mut u8, size: usize) {
    if size == 0 {
        return;
    }
    // SAFETY: the caller owns the range, and no code uses it any more.
    let result = unsafe { libc::munmap(address.cast(), size) };
    if result != 0 {
        // The range stays mapped. This leaks it, and is sound.
        log::error!("munmap of {size} bytes at {address:p}: {}", io::Error::last_os_error());
    }
}

/// Reserved address space for an aligned mapping.
struct Reservation {
    address: *mut u8,
    size: usize,
}

impl Reservation {
    fn new(size: usize) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: the kernel chooses a free range, so no existing object is replaced.
        let result = unsafe { libc::mmap(ptr::null_mut(), size, libc::PROT_NONE, flags, -1, 0) };
        if result == libc::MAP_FAILED {
            Err(io::Error::last_os_error())
        } else {
            Ok(Self { address: result.cast(), size })
        }
    }

    /// The first address in the reservation that is `skip` above a multiple of `alignment`. The
    /// reservation is larger than the mapping by `alignment`, so the mapping fits.
    fn aligned(&self, alignment: usize, skip: usize) -> *mut u8 {
        let mask = alignment.saturating_sub(1);
        let distance = skip.wrapping_sub(self.address.addr()) & mask;
        self.address.wrapping_add(distance)
    }

    /// Unmaps the reservation before and after the mapping that replaced its middle.
    fn keep(self, address: *mut u8, size: usize) {
        let before = address.addr().saturating_sub(self.address.addr());
        let after = self.size.saturating_sub(before).saturating_sub(size);
        unmap(self.address, before);
        unmap(address.wrapping_add(size), after);
        #[expect(
            clippy::mem_forget,
            reason = "every part of the reservation has a new owner or is unmapped"
        )]
        std::mem::forget(self);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        unmap(self.address, self.size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn mapping(offset: u64, size: u64) -> RegionMmap {
        let file = tempfile::tempfile().unwrap();
        file.set_len(offset + size).unwrap();
        RegionMmap::new(Arc::new(()), file.as_fd(), offset, offset, size).unwrap()
    }

    #[test]
    fn large_mappings_are_aligned_with_their_region() {
        for (offset, size, alignment) in [
            (0, 2 << 20, 2 << 20),
            (0x1000, 3 << 20, 4 << 20),
            (0x3000, 8 << 20, 8 << 20),
            (0, 256 << 20, 256 << 20),
            (0, 1 << 30, 1 << 30),
            (0x1000, 3 << 30, 1 << 30),
        ] {
            let mapping = mapping(offset, size);
            assert_eq!(
                mapping.host_address().addr() as u64 % alignment,
                offset % alignment,
                "{size:#x} at {offset:#x}"
            );
        }
    }

    #[test]
    fn the_alignment_is_that_of_the_size_between_2_mib_and_1_gib() {
        let (mib, gib) = (1 << 20, 1 << 30);
        for (size, expected) in [
            (4096, 1),
            (2 * mib - 4096, 1),
            (2 * mib, 2 * mib),
            (3 * mib, 4 * mib),
            (gib, gib),
            (32 * gib, gib),
        ] {
            assert_eq!(alignment(size), expected, "{size:#x}");
        }
    }

    #[test]
    fn the_mapping_shows_the_file() {
        use std::os::unix::fs::FileExt;
        for size in [0x1000, 4 << 20] {
            let file = tempfile::tempfile().unwrap();
            file.set_len(size).unwrap();
            let mapping = RegionMmap::new(Arc::new(()), file.as_fd(), 0, 0, size).unwrap();
            file.write_at(b"seen", size - 4).unwrap();
            let last = mapping.host_address().wrapping_add(size as usize - 1);
            // SAFETY: the address is the last byte of the mapping.
            assert_eq!(unsafe { last.read_volatile() }, b'n');
        }
    }

    #[test]
    fn replacing_by_zeros_keeps_the_memory_mapped_and_detaches_the_file() {
        use std::os::unix::fs::FileExt;
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x1000).unwrap();
        file.write_at(b"seen", 0).unwrap();
        let device = Arc::new(());
        let mapping = RegionMmap::new(device.clone(), file.as_fd(), 0, 0, 0x1000).unwrap();
        mapping.replace_by_zeros().unwrap();
        assert_eq!(Arc::strong_count(&device), 1);
        // SAFETY: the address is the first byte of the mapping.
        assert_eq!(unsafe { mapping.host_address().read_volatile() }, 0);
        // SAFETY: as above.
        unsafe { mapping.host_address().write_volatile(b'x') };
        let mut byte = [0];
        file.read_at(&mut byte, 0).unwrap();
        assert_eq!(byte, [b's']);
    }

    #[test]
    fn a_refused_mapping_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        for size in [0x1000, 4 << 20] {
            let error = RegionMmap::new(Arc::new(()), file.as_fd(), 1, 0, size).err().unwrap();
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        }
    }
}
