//! An IOAS: the I/O address space of all devices that are attached to it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use iommufd_bindings::iommufd as sys;
use iommufd_ioctls::IommuFd;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::ioctl_io_nr;

use crate::address::ByteRange;
use crate::backend::address_space::AddressSpace;
use crate::backend::description::IommuInfo;
use crate::backend::ioctl::check;
use crate::counters::VfioCalls;
use crate::host::HostMemory;

const NODE: &str = "/dev/iommu";

ioctl_io_nr!(IOMMU_IOAS_IOVA_RANGES, sys::IOMMUFD_TYPE as u32, sys::IOMMUFD_CMD_IOAS_IOVA_RANGES);

// linux/iommufd.h, since Linux 6.13.
ioctl_io_nr!(IOMMU_IOAS_MAP_FILE, sys::IOMMUFD_TYPE as u32, 0x8f);

/// `struct iommu_ioas_map_file` (linux/iommufd.h).
#[repr(C)]
struct MapFile {
    size: u32,
    flags: u32,
    ioas_id: u32,
    fd: i32,
    start: u64,
    length: u64,
    iova: u64,
}

/// An error of opening iommufd.
#[derive(Debug, thiserror::Error)]
pub enum IommufdError {
    /// `/dev/iommu` could not be opened: `ENOENT` without `CONFIG_IOMMUFD`, `EACCES`.
    #[error("cannot open /dev/iommu: {0}; {remedy}", remedy = open_remedy(.0))]
    Open(#[source] io::Error),
    /// `IOMMU_IOAS_ALLOC` failed.
    #[error("/dev/iommu: IOMMU_IOAS_ALLOC: {0}")]
    Allocate(#[source] io::Error),
    /// The passed file is not one of `/dev/iommu`.
    #[error("the file that was passed is not that of iommufd: pass /dev/iommu")]
    NoIommufd,
}

impl IommufdError {
    pub(crate) fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Open(source) | Self::Allocate(source) => source.kind(),
            Self::NoIommufd => io::ErrorKind::InvalidInput,
        }
    }
}

/// Keeps the error, and the kind of its errno if it has one.
impl From<IommufdError> for io::Error {
    fn from(error: IommufdError) -> Self {
        Self::new(error.kind(), error)
    }
}

fn open_remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "run 'chown $USER /dev/iommu' as root",
        _ => {
            "run 'modprobe iommufd' as root; a kernel without CONFIG_IOMMUFD has type1 only \
             (/dev/vfio/vfio)"
        }
    }
}

/// An I/O address space of iommufd. Dropping it destroys it; the kernel keeps the address space
/// until the last device that is attached to it is closed.
pub(crate) struct Ioas {
    iommufd: IommuFd,
    /// The number of the IOAS in the iommufd.
    id: u32,
    calls: Arc<VfioCalls>,
    /// The kernel has `IOMMU_IOAS_MAP_FILE` (Linux 6.13).
    maps_files: AtomicBool,
}

impl AsRawFd for Ioas {
    fn as_raw_fd(&self) -> RawFd {
        self.iommufd.as_raw_fd()
    }
}

impl Ioas {
    /// Opens `/dev/iommu`, and allocates an IOAS.
    pub fn open(calls: Arc<VfioCalls>) -> Result<Self, IommufdError> {
        let opened = OpenOptions::new().read(true).write(true).open(NODE);
        Self::new(opened.map_err(IommufdError::Open)?, calls).map_err(IommufdError::Allocate)
    }

    /// Takes an open file of `/dev/iommu`, and allocates an IOAS.
    pub fn passed(file: File, calls: Arc<VfioCalls>) -> Result<Self, IommufdError> {
        Self::new(file, calls).map_err(|source| match source.raw_os_error() {
            // Another kind of file does not know the ioctl.
            Some(libc::ENOTTY | libc::EINVAL) => IommufdError::NoIommufd,
            _ => IommufdError::Allocate(source),
        })
    }

    fn new(file: File, calls: Arc<VfioCalls>) -> io::Result<Self> {
        let iommufd = IommuFd::new_from_fd(file);
        let mut call = sys::iommu_ioas_alloc {
            size: size_of::<sys::iommu_ioas_alloc>() as u32,
            flags: 0,
            out_ioas_id: 0,
        };
        iommufd.alloc_iommu_ioas(&mut call).map_err(errno)?;
        Ok(Self { iommufd, id: call.out_ioas_id, calls, maps_files: AtomicBool::new(true) })
    }

    /// The number of the IOAS in its iommufd.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// `IOMMU_IOAS_MAP_FILE`, if the memory is a shared mapping of a file and the kernel can map
    /// that file. Returns whether the memory was mapped.
    fn map_file(&self, iova: u64, memory: &dyn HostMemory) -> io::Result<bool> {
        let may_map = self.maps_files.load(Ordering::Relaxed);
        let Some((file, offset)) = memory.file().filter(|_| may_map) else {
            return Ok(false);
        };
        self.calls.ioas_map_file.increment();
        let call = MapFile {
            size: size_of::<MapFile>() as u32,
            flags: FLAGS,
            ioas_id: self.id,
            fd: file.as_raw_fd(),
            start: offset,
            length: memory.size(),
            iova,
        };
        // SAFETY: the kernel reads the struct, which lives until the call returns. It lets devices
        // write to the file's pages, which the caller keeps by the contract of `map`.
        match check(unsafe { ioctl_with_ref(self, IOMMU_IOAS_MAP_FILE(), &call) }) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {
                self.maps_files.store(false, Ordering::Relaxed);
                Ok(false)
            }
            // The kernel maps memfds and dma-bufs only (iopt_map_file_pages).
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// `IOMMU_IOAS_MAP`.
    fn map_address(&self, iova: u64, memory: &dyn HostMemory) -> io::Result<()> {
        self.calls.ioas_map.increment();
        let call = sys::iommu_ioas_map {
            size: size_of::<sys::iommu_ioas_map>() as u32,
            flags: FLAGS,
            ioas_id: self.id(),
            __reserved: 0,
            user_va: memory.host_address().expose_provenance() as u64,
            length: memory.size(),
            iova,
        };
        self.iommufd.map_iommu_ioas(&call).map_err(errno)
    }

    /// `IOMMU_IOAS_IOVA_RANGES`.
    fn iova_ranges(&self) -> io::Result<Vec<ByteRange>> {
        let mut ranges = vec![sys::iommu_iova_range::default(); USUAL_RANGES];
        // If there are more, the first call gets the number (EMSGSIZE), and the second the ranges.
        // The third is for a number that grew in between: a device can be attached at any time.
        for _ in 0..3 {
            let mut call = sys::iommu_ioas_iova_ranges {
                size: size_of::<sys::iommu_ioas_iova_ranges>() as u32,
                ioas_id: self.id(),
                num_iovas: u32::try_from(ranges.len()).unwrap_or(u32::MAX),
                __reserved: 0,
                allowed_iovas: ranges.as_mut_ptr().expose_provenance() as u64,
                out_iova_alignment: 0,
            };
            // SAFETY: the kernel reads and writes the struct, and writes at most `num_iovas` ranges
            // to `allowed_iovas`, which has that many. Both live until the call returns.
            let result = unsafe { ioctl_with_mut_ref(self, IOMMU_IOAS_IOVA_RANGES(), &mut call) };
            let error = (result < 0).then(io::Error::last_os_error);
            let count = usize::try_from(call.num_iovas).unwrap_or(usize::MAX);
            match error {
                None => {
                    ranges.truncate(count);
                    return Ok(ranges
                        .iter()
                        .map(|range| between(range.start, range.last))
                        .collect());
                }
                Some(error)
                    if error.raw_os_error() == Some(libc::EMSGSIZE) && count <= MAX_RANGES =>
                {
                    ranges.resize(count, sys::iommu_iova_range::default());
                }
                Some(error) => return Err(error),
            }
        }
        Err(io::Error::from_raw_os_error(libc::E2BIG))
    }
}

/// Devices read and write, at the address that the call gives.
const FLAGS: u32 = sys::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE
    | sys::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE
    | sys::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA;

/// The ranges that one call fetches: more than most hosts have, with their reserved regions.
const USUAL_RANGES: usize = 16;

/// The most ranges that are fetched: more than any host reserves regions.
const MAX_RANGES: usize = 4096;

/// A range by its last byte. The last byte of the 64-bit space is left out: no page ends there.
fn between(start: u64, last: u64) -> ByteRange {
    ByteRange::between(start, last.saturating_add(1))
}

impl AddressSpace for Ioas {
    fn info(&self) -> io::Result<IommuInfo> {
        self.calls.ioas_iova_ranges.increment();
        // iommufd has no limit on the number of mappings.
        Ok(IommuInfo { iova_ranges: Some(self.iova_ranges()?), dma_avail: None })
    }

    unsafe fn map(&self, iova: u64, memory: &dyn HostMemory) -> io::Result<()> {
        match self.map_file(iova, memory)? {
            true => Ok(()),
            false => self.map_address(iova, memory),
        }
    }

    fn unmap(&self, iova: u64, size: u64) -> io::Result<()> {
        self.calls.ioas_unmap.increment();
        let mut call = sys::iommu_ioas_unmap {
            size: size_of::<sys::iommu_ioas_unmap>() as u32,
            ioas_id: self.id(),
            iova,
            length: size,
        };
        self.iommufd.unmap_iommu_ioas(&mut call).map_err(errno)?;
        // The kernel writes the number of unmapped bytes.
        if call.length == size { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EINVAL)) }
    }
}

impl Drop for Ioas {
    fn drop(&mut self) {
        // The memory of a mapping that is left is leaked by its owner.
        if let Err(error) = self.iommufd.destroy_iommu_object(self.id).map_err(errno) {
            log::error!(
                "IOMMU_DESTROY: {error}; the mappings stay until /dev/iommu is closed everywhere"
            );
        }
    }
}

/// The errno of a call of iommufd-ioctls. Only the calls of this module are expected.
fn errno(error: iommufd_ioctls::IommufdError) -> io::Error {
    use iommufd_ioctls::IommufdError as Failed;
    match error {
        Failed::IommuDestroy(errno)
        | Failed::IommuIoasAlloc(errno)
        | Failed::IommuIoasMap(errno)
        | Failed::IommuIoasUnmap(errno) => io::Error::from_raw_os_error(errno.errno()),
        other => io::Error::other(other),
    }
}
