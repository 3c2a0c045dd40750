//! The sysfs paths of PCI devices.

use std::path::Path;

use vfio_passthrough::PciAddress;
use vfio_passthrough::address::ParsePciAddressError;

/// The device of an address, a sysfs folder, or a link to one.
pub(crate) fn address(path: &Path) -> Result<PciAddress, ParsePciAddressError> {
    if let Ok(address) = PciAddress::from_sysfs_path(path) {
        return Ok(address);
    }
    // A link such as /sys/class/nvme/nvme0/device names the device only by its target.
    let folder = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    PciAddress::from_sysfs_path(&folder)
}
