//! Options of opening a device.

use std::fs::File;

use super::vf_token::VfToken;
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
    /// [`Sysfs::copy`] another process makes it.
    pub sysfs: Option<Sysfs>,
}
