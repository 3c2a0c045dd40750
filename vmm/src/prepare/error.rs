//! Errors of `vmm bind` and `vmm unbind`. Each text has the device, the operation, the cause and
//! the remedy.

use std::io;
use std::path::PathBuf;

use thiserror::Error as ThisError;
use vfio_passthrough::PciAddress;

/// An error of `vmm bind` or `vmm unbind`. The command has undone its earlier steps.
#[derive(Debug, ThisError)]
pub(crate) enum Error {
    /// The device does not exist.
    #[error("{0}: there is no such PCI device\n  list the devices with: vmm devices")]
    NoDevice(PciAddress),
    /// vfio-pci does not bind to bridges.
    #[error(
        "{0}: the device is a bridge, which stays with the host\n  \
         bind the devices behind it: see 'vmm devices'"
    )]
    Bridge(PciAddress),
    /// VFIO requires an IOMMU group.
    #[error(
        "{0}: the device is in no IOMMU group\n  find out what this host lacks with: vmm check {0}"
    )]
    NoGroup(PciAddress),
    /// The host uses the device.
    #[error(
        "{address}: the host uses the device for {what}\n  \
         {}to {command} it anyway: vmm {command} --force {address}",
        first(remedy)
    )]
    Held {
        /// The address of the device.
        address: PciAddress,
        /// The uses of the device.
        what: String,
        /// The commands that end these uses.
        remedy: Option<String>,
        /// `bind` or `unbind`.
        command: &'static str,
    },
    /// A process has the group open.
    #[error(
        "{address}: its group {group} is in use by {by}\n  \
         find the process with: fuser -v /dev/vfio/{group}; to unbind the device anyway, which waits \
         for that process: vmm unbind --force {address}"
    )]
    InUse {
        /// The address of the device.
        address: PciAddress,
        /// The group of the device.
        group: u32,
        /// The process, as far as it is known.
        by: String,
    },
    /// vfio-pci could not be loaded.
    #[error(
        "{address}: the kernel has no vfio-pci driver, and 'modprobe vfio-pci' failed: {why}\n  \
         load the driver as root: sudo modprobe vfio-pci; the kernel requires CONFIG_VFIO_PCI"
    )]
    NoDriver {
        /// The first device that needs the driver.
        address: PciAddress,
        /// The cause.
        why: String,
    },
    /// The kernel refused a write.
    #[error("{address}: cannot {operation}: writing {path}: {source}\n  {}", remedy(source))]
    Write {
        /// The address of the device.
        address: PciAddress,
        /// The purpose of the write.
        operation: &'static str,
        /// The attribute.
        path: PathBuf,
        /// The errno.
        source: io::Error,
    },
    /// vfio-pci did not bind to the device.
    #[error(
        "{0}: vfio-pci refused the device\n  \
         find the reason with: dmesg | tail; vfio-pci refuses devices on its denylist; if the \
         module was loaded with ids=, it refuses all other ids too"
    )]
    NotTaken(PciAddress),
    /// vfio-pci bound to the device again.
    #[error(
        "{0}: vfio-pci took the device again, because its ids include this kind of device\n  \
         list the ids with: cat /sys/module/vfio_pci/parameters/ids; remove 'vfio-pci.ids=' from the \
         kernel's command line and from /etc/modprobe.d"
    )]
    TakenAgain(PciAddress),
    /// The former driver did not bind to the device.
    #[error(
        "{address}: {driver} did not take the device back\n  find the reason with: dmesg | tail"
    )]
    NotReturned {
        /// The address of the device.
        address: PciAddress,
        /// The former driver.
        driver: String,
    },
    /// A step failed, and so did the undo.
    #[error("{first}\n  the undo failed too: {second}")]
    NotUndone {
        /// The first error.
        first: Box<Error>,
        /// The error of the undo.
        second: Box<Error>,
    },
    /// The report could not be formatted.
    #[error("the report cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

fn first(remedy: &Option<String>) -> String {
    remedy.as_ref().map(|remedy| format!("end that use first: {remedy}; ")).unwrap_or_default()
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "run the same command as root, with sudo",
        io::ErrorKind::NotFound => "check that the device still exists with: vmm devices",
        _ => "find the reason with: dmesg | tail",
    }
}
