//! Maps of files (`IOMMU_IOAS_MAP_FILE`, drivers/iommu/iommufd/ioas.c).

use std::io;

use crate::backing::Backing;
use crate::errno::errno;
use crate::files::{Fd, Kind};
use crate::ioas::Map;
use crate::state::System;

/// `struct iommu_ioas_map_file`, for [`System::ioas_map_file`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoasMapFile {
    /// The flags of [`IoasMap`](crate::IoasMap).
    pub flags: u32,
    /// The number of the address space.
    pub ioas: u32,
    /// The file.
    pub file: Fd,
    /// The offset in the file.
    pub start: u64,
    /// The size in bytes.
    pub length: u64,
    /// The address that the device uses. Without `FIXED_IOVA` the kernel chooses it.
    pub iova: u64,
}

impl System {
    /// `IOMMU_IOAS_MAP_FILE` (`iommufd_ioas_map_file`): the IOVA. The file stays in use after its
    /// fd is closed. The model maps memfds ([`System::open_memory`]).
    ///
    /// # Errors
    ///
    /// Those of [`System::ioas_map`] up to `ENOENT`, then:
    /// - `EINVAL`: the length is 0.
    /// - `EOVERFLOW`: the end of the range of the file does not fit into 64 bits.
    /// - `EBADF`: the fd is not open.
    /// - those of [`System::ioas_map`] on lengths and IOVAs.
    /// - `EINVAL`: a device is attached, and the file is no memfd or too small.
    /// - `ENOMEM`: a device is attached, and the memory exceeds `RLIMIT_MEMLOCK`.
    pub fn ioas_map_file(&self, iommufd: Fd, call: &IoasMapFile) -> io::Result<u64> {
        let mut state = self.state();
        let file = state.files.kind(call.file);
        let (iommufd, description, process) = state.iommufd(iommufd)?;
        if !description.kernel.maps_files() {
            return Err(errno(libc::ENOTTY));
        }
        let ioas = iommufd.ioas_to_map(call.flags, [call.iova, call.length], call.ioas)?;
        if call.length == 0 {
            return Err(errno(libc::EINVAL));
        }
        if call.start.checked_add(call.length.saturating_sub(1)).is_none() {
            return Err(errno(libc::EOVERFLOW));
        }
        let size = match file? {
            Kind::Memory(size) => Some(size),
            _ => None,
        };
        let memory = Backing::File(call.start, size);
        memory.check_length(call.length, description.kernel)?;
        let IoasMapFile { flags, length, iova, .. } = *call;
        ioas.map(&Map { flags, memory, length, iova }, process)
    }
}
