//! Devices that a client of the control socket opened for a running guest.

use std::fs::File;

use vfio_passthrough::PciAddress;
use vfio_passthrough::backend::sysfs::Sysfs;

use crate::config::Passthrough;

/// The devices to add, all or none.
#[derive(Debug)]
pub(crate) struct Addition {
    /// Whether the nodes are those of devices (iommufd), not of groups (type1).
    pub(crate) is_iommufd: bool,
    /// A file of the container or of iommufd, for a guest that has none yet.
    pub(crate) context: Option<File>,
    pub(crate) devices: Vec<NewDevice>,
}

/// A device to add.
#[derive(Debug)]
pub(crate) struct NewDevice {
    pub(crate) address: PciAddress,
    pub(crate) asked: Passthrough,
    /// The file of its group or of itself; `None` if the guest has its group.
    pub(crate) node: Option<File>,
    /// What the client read from sysfs about it.
    pub(crate) sysfs: Sysfs,
}

impl NewDevice {
    /// The physical function of a virtual function.
    pub(crate) fn physical(&self) -> Option<PciAddress> {
        self.sysfs.physical_function(self.address)
    }
}
