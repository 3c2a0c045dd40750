//! The memory of areas: at an address of the process, or in a file
//! (drivers/iommu/iommufd/pages.c).

use std::io;

use crate::errno::errno;
use crate::kernel::Kernel;
use crate::process::{PAGE, Process};

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
