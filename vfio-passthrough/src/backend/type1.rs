//! A container of the kernel (`/dev/vfio/vfio`) with a type1v2 IOMMU. It is an address space as
//! soon as it has a group.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use vfio_ioctls::{VfioContainer, VfioError};

use super::address_space::AddressSpace;
use super::description::IommuInfo;
use super::ioctl;
use super::sysfs::Sysfs;
use crate::counters::VfioCalls;
use crate::host::HostMemory;

/// An error of opening a container.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// `/dev/vfio/vfio` could not be opened: `ENOENT` or `ENODEV` without its module, `EACCES`.
    #[error("cannot open /dev/vfio/vfio: {0}; {remedy}", remedy = open_remedy(.0))]
    Open(#[source] io::Error),
    /// The kernel's VFIO has no groups: it was built without CONFIG_VFIO_GROUP.
    #[error(
        "this kernel has no /dev/vfio/vfio: its VFIO has only the nodes of devices \
         (/dev/vfio/devices); use iommufd, or a kernel with CONFIG_VFIO_GROUP and \
         CONFIG_VFIO_CONTAINER"
    )]
    NoGroups,
    /// This crate cannot use the kernel's VFIO: its API version differs, or it has no type1v2
    /// IOMMU.
    #[error(
        "/dev/vfio/vfio: {0}; run 'modprobe vfio_iommu_type1', and use a kernel with \
         CONFIG_VFIO_IOMMU_TYPE1"
    )]
    Unsupported(#[source] VfioError),
    /// The passed file is not a container with a type1v2 IOMMU.
    #[error(
        "the file that was passed is no VFIO container with a type1v2 IOMMU: pass /dev/vfio/vfio"
    )]
    NoContainer,
}

impl ContainerError {
    pub(crate) fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Open(source) => source.kind(),
            Self::NoGroups | Self::Unsupported(_) => io::ErrorKind::Unsupported,
            Self::NoContainer => io::ErrorKind::InvalidInput,
        }
    }
}

/// Keeps the error, and the kind of its errno if it has one.
impl From<ContainerError> for io::Error {
    fn from(error: ContainerError) -> Self {
        Self::new(error.kind(), error)
    }
}

fn open_remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EACCES) => {
            "most hosts let every user open it: run 'chmod 0666 /dev/vfio/vfio' as root"
        }
        Some(libc::EPERM) => {
            "the device cgroup of this process denies it: start the container with \
             '--device /dev/vfio/vfio --device /dev/vfio/N', or set 'DeviceAllow=' in the systemd \
             unit"
        }
        _ => {
            "run 'modprobe vfio-pci' as root; a container needs \
             '--device /dev/vfio/vfio --device /dev/vfio/N'"
        }
    }
}

/// The error of a container that does not open. A missing node has two causes.
fn open_error(source: io::Error, sysfs: &Sysfs) -> ContainerError {
    let is_missing =
        matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ENXIO));
    match is_missing && sysfs.lacks_groups() {
        true => ContainerError::NoGroups,
        false => ContainerError::Open(source),
    }
}

/// The file of a container.
enum ContainerFile {
    Opened(VfioContainer),
    Passed(File),
}

/// A container with a type1v2 IOMMU.
pub(crate) struct Type1Container {
    file: ContainerFile,
    calls: Arc<VfioCalls>,
}

impl AsRawFd for Type1Container {
    fn as_raw_fd(&self) -> RawFd {
        match &self.file {
            ContainerFile::Opened(container) => container.as_raw_fd(),
            ContainerFile::Passed(file) => file.as_raw_fd(),
        }
    }
}

impl Type1Container {
    /// Opens `/dev/vfio/vfio` and checks its API version and that it has a type1v2 IOMMU.
    pub fn open(calls: Arc<VfioCalls>) -> Result<Self, ContainerError> {
        let container = VfioContainer::new(None).map_err(|error| match error {
            VfioError::OpenContainer(source) => open_error(source, &Sysfs::default()),
            other => ContainerError::Unsupported(other),
        })?;
        Ok(Self { file: ContainerFile::Opened(container), calls })
    }

    /// Takes an open file of `/dev/vfio/vfio`, after the same checks.
    pub fn passed(file: File, calls: Arc<VfioCalls>) -> Result<Self, ContainerError> {
        match ioctl::is_type1_container(&file) {
            true => Ok(Self { file: ContainerFile::Passed(file), calls }),
            false => Err(ContainerError::NoContainer),
        }
    }
}

impl AddressSpace for Type1Container {
    fn info(&self) -> io::Result<IommuInfo> {
        self.calls.iommu_info.increment();
        ioctl::iommu_info(self)
    }

    unsafe fn map(&self, iova: u64, memory: &dyn HostMemory) -> io::Result<()> {
        self.calls.map_dma.increment();
        // SAFETY: this function and `map_dma` have the same contract, and the caller fulfils it.
        unsafe { ioctl::map_dma(self, iova, memory) }
    }

    fn unmap(&self, iova: u64, size: u64) -> io::Result<()> {
        self.calls.unmap_dma.increment();
        ioctl::unmap_dma(self, iova, size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_errno_of_the_container_has_its_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let text = |errno| {
            let source = io::Error::from_raw_os_error(errno);
            open_error(source, &Sysfs::at(folder.path())).to_string()
        };
        let cases = [
            (libc::ENOENT, "modprobe vfio-pci"),
            (libc::ENOENT, "--device /dev/vfio/vfio"),
            (libc::EACCES, "chmod 0666"),
            (libc::EPERM, "the device cgroup"),
        ];
        for (errno, part) in cases {
            assert!(text(errno).contains(part), "{}", text(errno));
        }
        std::fs::create_dir_all(folder.path().join("class/vfio-dev")).unwrap();
        for errno in [libc::ENOENT, libc::ENODEV, libc::ENXIO] {
            assert!(text(errno).contains("CONFIG_VFIO_GROUP"), "{}", text(errno));
        }
        assert!(text(libc::EACCES).contains("chmod 0666"));
    }
}
