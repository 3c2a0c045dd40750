//! Options of opening a device.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::error::Error;
use super::vf_token::VfToken;
use crate::address::PciAddress;
use crate::backend::sysfs::Sysfs;

/// How a device is opened; by default by opening the node of its group (type1) or its own
/// (iommufd), and without a token.
#[derive(Debug, Default)]
pub struct DeviceOptions {
    /// The file of the device's group (`/dev/vfio/N`), or with iommufd of the device
    /// (`/dev/vfio/devices/vfioN`), open for reading and writing: this process then needs no
    /// permission to open it. If the group is already attached, the file is closed.
    pub file: Option<File>,
    /// The VF token. A virtual function whose physical function is on vfio-pci is opened with the
    /// token of that one, and so is a physical function whose virtual functions are in use. If they
    /// are not in use, the physical function gets this token.
    pub vf_token: Option<VfToken>,
    /// A view of sysfs for this device instead of `/sys`, for a process that may open no file. With
    /// [`Sysfs::copy`] another process makes it. The library then opens nothing: it needs `file`
    /// for a device of a new group, and refuses a group that can share no container.
    pub sysfs: Option<Sysfs>,
}

/// A device's file, if it was passed, and what sysfs reports.
pub(super) struct Found {
    pub file: Option<File>,
    pub sysfs: Sysfs,
    /// Whether this process may open files.
    pub may_open: bool,
}

impl Found {
    pub fn new(file: Option<File>, sysfs: Option<Sysfs>) -> Self {
        let may_open = sysfs.is_none();
        Self { file, sysfs: sysfs.unwrap_or_default(), may_open }
    }

    /// The passed file, or else the one that `open` opens; `path` is its node.
    pub fn open(
        &mut self,
        (address, path): (PciAddress, PathBuf),
        open: impl FnOnce(&Path) -> Result<File, Error>,
    ) -> Result<File, Error> {
        match self.file.take() {
            Some(file) => Ok(file),
            None if self.may_open => open(&path),
            None => Err(Error::NoFile { address, path }),
        }
    }
}
