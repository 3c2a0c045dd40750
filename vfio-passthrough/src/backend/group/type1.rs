//! A container of the kernel: an address space once a group is in it.

use std::io;
use std::sync::Arc;

use vfio_ioctls::{VfioContainer, VfioError};

use super::error::Error;
use crate::backend::{AddressSpace, IommuInfo, ioctl};
use crate::counters::VfioCalls;

/// A container with a type1v2 IOMMU.
pub(super) struct Type1 {
    pub vfio: VfioContainer,
    calls: Arc<VfioCalls>,
}

impl Type1 {
    /// Opens `/dev/vfio/vfio` and checks its API version and that it has a type1v2 IOMMU.
    pub fn open(calls: Arc<VfioCalls>) -> Result<Self, Error> {
        let vfio = VfioContainer::new(None).map_err(|error| match error {
            VfioError::OpenContainer(source) => Error::OpenContainer(source),
            other => Error::Unsupported(other),
        })?;
        Ok(Self { vfio, calls })
    }
}

impl AddressSpace for Type1 {
    fn info(&self) -> io::Result<IommuInfo> {
        self.calls.iommu_info.increment();
        ioctl::iommu_info(&self.vfio)
    }

    unsafe fn map(&self, iova: u64, size: u64, host: *mut u8) -> io::Result<()> {
        let size = usize::try_from(size).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        self.calls.map_dma.increment();
        // SAFETY: our caller promises for the memory what vfio-ioctls asks for: see `AddressSpace::map` and
        // `HostMemory`.
        unsafe { self.vfio.vfio_dma_map(iova, size, host) }.map_err(errno)
    }

    fn unmap(&self, iova: u64, size: u64) -> io::Result<()> {
        let size = usize::try_from(size).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        self.calls.unmap_dma.increment();
        self.vfio.vfio_dma_unmap(iova, size).map_err(errno)
    }
}

/// The errno in an error of vfio-ioctls; where it kept none, `EINVAL`, which is what a size that does not
/// match means.
fn errno(error: VfioError) -> io::Error {
    match error {
        VfioError::IommuDmaMap(source) | VfioError::IommuDmaUnmap(source) => source.into(),
        _ => io::Error::from_raw_os_error(libc::EINVAL),
    }
}
