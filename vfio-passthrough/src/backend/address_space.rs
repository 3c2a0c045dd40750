//! The port to an I/O address space of the kernel.

use std::io;

use super::description::IommuInfo;
use crate::host::HostMemory;

/// An I/O address space: a VFIO container, or an IOAS of iommufd.
pub trait AddressSpace: Send + Sync {
    /// The limits of the address space. They can change when a group is attached.
    ///
    /// # Errors
    ///
    /// The errno of the ioctl: `EINVAL` before a group was attached.
    fn info(&self) -> io::Result<IommuInfo>;

    /// Maps `memory` at the I/O virtual address `iova`, for reads and writes of the devices. The
    /// kernel pins the memory. The address and the size are multiples of the page size.
    ///
    /// # Errors
    ///
    /// `EEXIST` if the range overlaps a mapping, `EINVAL` if it is not aligned or is outside of the
    /// IOVA ranges, `ENOMEM` if it exceeds RLIMIT_MEMLOCK, `ENOSPC` if there are too many mappings,
    /// `EFAULT` if the memory is not mapped in this process.
    ///
    /// # Safety
    ///
    /// The memory fulfils the contract of [`HostMemory`] until `unmap` of the same range succeeds or
    /// the address space is dropped.
    unsafe fn map(&self, iova: u64, memory: &dyn HostMemory) -> io::Result<()>;

    /// Unmaps a range that one `map` mapped. After a success, no device can access the memory.
    ///
    /// # Errors
    ///
    /// The errno of the ioctl. Devices may still access the memory.
    fn unmap(&self, iova: u64, size: u64) -> io::Result<()>;
}
