//! Drivers of PCI functions, through sysfs (Documentation/ABI/testing/sysfs-bus-pci).

use std::fs;
use std::io::Result;
use std::path::Path;

use crate::run::now_ns;

/// The agent's first argument when it shall unbind a function, whose address is the second, and say how it went.
pub const UNBIND: &str = "unbind";

/// Takes a function from its driver; how long that took, in L1's nanoseconds, or why it did not.
pub fn unbind(address: &str) -> String {
    let path = Path::new("/sys/bus/pci/devices").join(address).join("driver/unbind");
    let begun = now_ns();
    match fs::write(path, address) {
        Ok(()) => format!("unbound in {} ns", now_ns().saturating_sub(begun)),
        Err(error) => error.to_string(),
    }
}

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
