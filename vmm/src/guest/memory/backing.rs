//! The backing of guest RAM.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MmapAdvise, madvise};
use resources::AddressRange;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap, MmapRegion};

use crate::config::{HugePages, Memory};
use crate::error::Error;
use crate::host::limits::{self, MemoryNeeds};

const NAME: &CStr = c"guest-ram";

/// Maps a region of RAM.
pub(crate) fn map(range: &AddressRange, memory: Memory) -> Result<Arc<GuestRegionMmap>, Error> {
    let failed = |why: String| refused(range, memory, why);
    let size = usize::try_from(range.size).map_err(|e| failed(e.to_string()))?;
    let mut builder = MmapRegionBuilder::new(size)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(flags(memory));
    if memory.shared {
        let file = file(range.size, memory.hugepages).map_err(|e| failed(e.to_string()))?;
        builder = builder.with_file_offset(FileOffset::new(file, 0));
    }
    let region = builder.build().map_err(|e| failed(e.to_string()))?;
    advise(&region, memory);
    let region = GuestRegionMmap::new(region, GuestAddress(range.start));
    region.map(Arc::new).ok_or_else(|| failed("it ends above 2^64".into()))
}

/// The error of a region that cannot be mapped. The kernel's errno is ENOMEM for a limit of the
/// process and for one of the host.
fn refused(range: &AddressRange, memory: Memory, why: String) -> Error {
    let needs = MemoryNeeds { memory, cpus: 1, at_once: true };
    match limits::over_commit(Path::new("/"), &needs) {
        Err(shortage) => shortage.into(),
        Ok(()) => Error::Ram { size: range.size >> 20, why },
    }
}

/// The mapping's flags. mmap reserves huge pages, so a shortage fails here and not at a later
/// access of the guest.
fn flags(memory: Memory) -> i32 {
    let kind = match memory.shared {
        true => libc::MAP_SHARED,
        false => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    };
    let huge = match (memory.hugepages, memory.shared) {
        (None, _) => libc::MAP_NORESERVE,
        // The memfd has the huge page flags.
        (Some(_), true) => 0,
        (Some(HugePages::Size2M), false) => libc::MAP_HUGETLB | libc::MAP_HUGE_2MB,
        (Some(HugePages::Size1G), false) => libc::MAP_HUGETLB | libc::MAP_HUGE_1GB,
    };
    kind | huge
}

/// Creates a memfd.
fn file(size: u64, hugepages: Option<HugePages>) -> io::Result<File> {
    let huge = match hugepages {
        None => MFdFlags::empty(),
        Some(HugePages::Size2M) => MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB,
        Some(HugePages::Size1G) => MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_1GB,
    };
    let file = File::from(memfd_create(NAME, MFdFlags::MFD_CLOEXEC | huge)?);
    file.set_len(size)?;
    Ok(file)
}

/// Enables or disables transparent huge pages, which need fewer page faults, fewer pins and a
/// shorter page walk.
fn advise(region: &MmapRegion, memory: Memory) {
    if memory.hugepages.is_some() {
        return;
    }
    let advice = match memory.thp {
        Some(false) => MmapAdvise::MADV_NOHUGEPAGE,
        _ => MmapAdvise::MADV_HUGEPAGE,
    };
    if let Some(start) = NonNull::new(region.as_ptr().cast()) {
        // SAFETY: the advice changes neither the contents nor the validity of the mapping,
        // and the mapping of `region` covers these bytes.
        let advised = unsafe { madvise(start, region.size(), advice) };
        advised.unwrap_or_else(|e| log::debug!("madvise for huge pages of guest RAM failed: {e}"));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use vm_memory::{Bytes, GuestMemoryRegion, MemoryRegionAddress};

    use super::*;

    fn mapped(options: &str) -> Result<Arc<GuestRegionMmap>, Error> {
        map(&AddressRange::new(0, 64 << 20), options.parse().unwrap())
    }

    /// Two lines of /proc/self/smaps for the mapping of `region`: its first line and its flags.
    fn smaps(region: &GuestRegionMmap) -> (String, String) {
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let start = format!("{:x}-", region.as_ptr().addr());
        let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&start));
        let head = lines.next().unwrap().to_owned();
        (head, lines.find(|line| line.starts_with("VmFlags:")).unwrap().to_owned())
    }

    #[test]
    fn plain_memory_is_private_and_allows_huge_pages() {
        let (head, flags) = smaps(&mapped("64M").unwrap());
        assert!(head.contains(" rw-p ") && !head.contains("guest-ram"), "{head}");
        assert!(flags.contains(" hg") && flags.contains(" nr"), "{flags}");
        let (_, flags) = smaps(&mapped("64M,thp=off").unwrap());
        assert!(flags.contains(" nh") && !flags.contains(" hg"), "{flags}");
    }

    #[test]
    fn shared_memory_is_a_memfd_that_can_be_mapped_again() {
        let region = mapped("64M,shared=on").unwrap();
        let (head, _) = smaps(&region);
        assert!(head.contains(" rw-s ") && head.contains("/memfd:guest-ram"), "{head}");
        region.write_obj(7_u32, MemoryRegionAddress(4096)).unwrap();
        let file = region.file_offset().unwrap().file().try_clone().unwrap();
        let mut read = [0; 4];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut read, 4096).unwrap();
        assert_eq!(u32::from_le_bytes(read), 7);
    }

    /// The test passes with or without reserved pages on this host: mmap reserves all pages or
    /// fails.
    #[test]
    fn mmap_reserves_huge_pages_or_fails() {
        for options in ["64M,hugepages=2M", "64M,hugepages=2M,shared=on"] {
            match mapped(options) {
                Ok(region) => assert!(smaps(&region).1.contains(" ht"), "{options}"),
                Err(error) => assert!(
                    error.to_string().starts_with("guest RAM of 64 MiB could not be mapped: "),
                    "{error}"
                ),
            }
        }
    }
}
