//! USB devices, from sysfs. The kernel finds one only if commands to its controller complete with
//! interrupts.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use guest::Report;

use crate::interrupts;
use crate::pci;
use crate::system::{Error, read};

const DEVICES: &str = "/sys/bus/usb/devices";
/// The vendor ID of the Linux Foundation, whose devices are root hubs.
const ROOT_HUB: &str = "1d6b";
/// The class code of a USB controller with xHCI (PCI Code and ID Assignment 1.11, 1.13).
const XHCI_CLASS: &str = "0c0330";
/// How long a device may take to appear.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Waits for `count` devices, and reports all devices.
pub fn look(count: usize) -> Result<Report, Error> {
    let begin = Instant::now();
    let mut devices = devices()?;
    while devices.len() < count && begin.elapsed() < TIMEOUT {
        sleep(Duration::from_millis(10));
        devices = self::devices()?;
    }
    let controllers = pci::functions()?.into_iter().filter(|function| function.class == XHCI_CLASS);
    let kind = |address: String| interrupts::kind(&format!("/sys/bus/pci/devices/{address}"));
    let kinds = controllers.map(|function| kind(function.address)).collect::<Result<_, _>>()?;
    Ok(Report::Usb { devices, kinds, interrupts: interrupts::counts()? })
}

fn devices() -> Result<Vec<String>, Error> {
    let entries = fs::read_dir(DEVICES).map_err(Error::file("list", DEVICES))?;
    // The folder also lists interfaces, which have no such files.
    let id =
        |name: &str, folder: &fs::DirEntry| read(&folder.path().join(name).to_string_lossy()).ok();
    let device = |folder: fs::DirEntry| {
        let (vendor, product) = (id("idVendor", &folder)?, id("idProduct", &folder)?);
        (vendor.trim() != ROOT_HUB).then(|| format!("{}:{}", vendor.trim(), product.trim()))
    };
    let mut devices: Vec<_> = entries.flatten().filter_map(device).collect();
    devices.sort();
    Ok(devices)
}
