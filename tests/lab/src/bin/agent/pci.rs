//! Drivers of PCI functions, through sysfs (Documentation/ABI/testing/sysfs-bus-pci).

use std::fs;
use std::io::Result;
use std::path::Path;

use crate::run::now_ns;

/// The agent's first argument to unbind the function whose address is the second argument.
pub const UNBIND: &str = "unbind";

/// Unbinds a function; returns a text with the time that it took by L1's clock, or with the error.
pub fn unbind(address: &str) -> String {
    let path = Path::new("/sys/bus/pci/devices").join(address).join("driver/unbind");
    let begun = now_ns();
    match fs::write(path, address) {
        Ok(()) => format!("unbound in {} ns", now_ns().saturating_sub(begun)),
        Err(error) => error.to_string(),
    }
}

/// Unbinds a function from its driver, then binds it to `driver`, if any.
pub fn bind(address: &str, driver: Option<&str>) -> Result<()> {
    let folder = Path::new("/sys/bus/pci/devices").join(address);
    if folder.join("driver").exists() {
        fs::write(folder.join("driver/unbind"), address)?;
    }
    // An empty line clears the override.
    fs::write(folder.join("driver_override"), driver.unwrap_or("\n"))?;
    match driver {
        Some(_) => fs::write("/sys/bus/pci/drivers_probe", address),
        None => Ok(()),
    }
}
