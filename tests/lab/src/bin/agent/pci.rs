//! Drivers of PCI functions, through sysfs (Documentation/ABI/testing/sysfs-bus-pci).

use std::fs;
use std::io::Result;
use std::path::Path;

/// Unbinds a function from what it has, then binds it to `driver`.
pub fn bind(address: &str, driver: Option<&str>) -> Result<()> {
    let folder = Path::new("/sys/bus/pci/devices").join(address);
    if folder.join("driver").exists() {
        fs::write(folder.join("driver/unbind"), address)?;
    }
    // An empty line takes an override away.
    fs::write(folder.join("driver_override"), driver.unwrap_or("\n"))?;
    match driver {
        Some(_) => fs::write("/sys/bus/pci/drivers_probe", address),
        None => Ok(()),
    }
}
