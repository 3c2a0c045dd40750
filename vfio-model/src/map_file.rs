//! The memory of areas: at an address of the process, or in a file (`IOMMU_IOAS_MAP_FILE`,
//! drivers/iommu/iommufd/pages.c).

use std::io;

use crate::errno::errno;
use crate::files::{Fd, Kind};
use crate::ioas::Map;
use crate::kernel::Kernel;
use crate::process::{PAGE, Process};
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

/// Memory, from some byte on (`struct iopt_pages`).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Backing {
    /// The address in the process's memory.
    Address(u64),
    /// The offset in a file, and its size if it is a memfd.
    File(u64, Option<u64>),
}

impl Backing {
    /// The address or the offset.
    pub fn start(self) -> u64 {
        match self {
            Self::Address(start) | Self::File(start, _) => start,
        }
    }

    /// The memory `bytes` behind this.
    pub fn behind(self, bytes: u64) -> Self {
        match self {
            Self::Address(start) => Self::Address(start.wrapping_add(bytes)),
            Self::File(start, size) => Self::File(start.wrapping_add(bytes), size),
        }
    }

    /// What the kernel checks before it looks at the address space (`iopt_alloc_user_pages`; in
    /// 6.12 `iopt_alloc_pages`, with the checks the other way round).
    pub fn check_length(self, length: u64, kernel: Kernel) -> io::Result<()> {
        let too_long = length == 0 || length > u64::MAX.saturating_sub(PAGE);
        let overflows = match self {
            Self::Address(start) => start.checked_add(length).is_none(),
            Self::File(..) => false,
        };
        match (overflows, too_long) {
            (true, false) => Err(errno(libc::EOVERFLOW)),
            (true, true) if kernel.checks_overflow() => Err(errno(libc::EOVERFLOW)),
            (_, true) => Err(errno(libc::EINVAL)),
            (false, false) => Ok(()),
        }
    }

    /// Checks that the pages can be pinned: EFAULT without memory at the address; EINVAL if the
    /// file is no memfd, or ends before the last page does (`memfd_pin_folios`).
    pub fn check_present(self, length: u64, write: bool, process: &Process) -> io::Result<()> {
        match self {
            Self::Address(start) => process.check(start, length, write),
            Self::File(start, size) => {
                let end = start.saturating_add(length).checked_next_multiple_of(PAGE);
                let has_room = end.zip(size).is_some_and(|(end, size)| end <= size);
                if has_room { Ok(()) } else { Err(errno(libc::EINVAL)) }
            }
        }
    }
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
