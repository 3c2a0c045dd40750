//! Opens the nodes of devices, for this process or for another one.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use super::error::Error;
use crate::address::PciAddress;
use crate::backend::sysfs::Sysfs;
use crate::backend::{ContainerError, IommufdError};

/// Opens nodes for a process that may open no file: a VMM whose guest runs. A client of that VMM
/// passes the files and a [copy of sysfs](Sysfs::copy) to it by a UNIX socket (unix(7),
/// SCM_RIGHTS). The VMM gives them to
/// [`IommuContext::open_device_with`](super::IommuContext::open_device_with).
#[derive(Debug, Default)]
pub struct Nodes {
    sysfs: Sysfs,
    is_iommufd: bool,
}

impl Nodes {
    /// The nodes of iommufd, or those of type1.
    pub fn new(is_iommufd: bool) -> Self {
        Self { sysfs: Sysfs::default(), is_iommufd }
    }

    /// Whether the nodes are those of iommufd.
    pub fn is_iommufd(&self) -> bool {
        self.is_iommufd
    }

    /// The view of sysfs.
    pub fn sysfs(&self) -> &Sysfs {
        &self.sysfs
    }

    /// Opens `/dev/iommu`, or `/dev/vfio/vfio`.
    ///
    /// # Errors
    ///
    /// [`Error::Iommufd`] or [`Error::Container`].
    pub fn open_context(&self) -> Result<File, Error> {
        match self.is_iommufd {
            true => Ok(read_write(Path::new("/dev/iommu")).map_err(IommufdError::Open)?),
            false => Ok(read_write(Path::new("/dev/vfio/vfio")).map_err(ContainerError::Open)?),
        }
    }

    /// Opens a device's node, or that of its group, after the checks that an assignment makes before
    /// it. The kernel opens the node of a group once.
    ///
    /// # Errors
    ///
    /// [`Error::NotReady`]; [`Error::NoCdev`] and [`Error::OpenCdev`], or [`Error::GroupBusy`] and
    /// [`Error::OpenGroup`].
    pub fn open(&self, address: PciAddress) -> Result<File, Error> {
        let group = self.sysfs.ready_group(address).map_err(Error::NotReady)?;
        match self.is_iommufd {
            true => cdev(&self.sysfs, address),
            false => open_group(address, group, &group_node(group)),
        }
    }
}

/// The node of a group.
pub(super) fn group_node(group: u32) -> PathBuf {
    Path::new("/dev/vfio").join(group.to_string())
}

fn cdev(sysfs: &Sysfs, address: PciAddress) -> Result<File, Error> {
    open_cdev(address, &sysfs.cdev(address).ok_or(Error::NoCdev { address })?)
}

pub(super) fn open_cdev(address: PciAddress, path: &Path) -> Result<File, Error> {
    read_write(path).map_err(|source| Error::OpenCdev { address, path: path.to_owned(), source })
}

pub(super) fn open_group(address: PciAddress, group: u32, path: &Path) -> Result<File, Error> {
    read_write(path).map_err(|source| match source.raw_os_error() {
        Some(libc::EBUSY) => Error::GroupBusy { address, group },
        _ => Error::OpenGroup { address, group, source },
    })
}

fn read_write(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}
