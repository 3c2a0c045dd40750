//! Why a device was not bound or unbound: each names it, what was done, why, and what mends it.

use std::io;
use std::path::PathBuf;

use thiserror::Error as ThisError;
use vfio_passthrough::PciAddress;

/// Why `vmm bind` or `vmm unbind` did not do it. What it had done by then is undone.
#[derive(Debug, ThisError)]
pub(crate) enum Error {
    /// There is no such device.
    #[error("{0}: there is no such PCI device\n  see those that there are with: vmm devices")]
    NoDevice(PciAddress),
    /// vfio-pci takes none of these.
    #[error(
        "{0}: it is a bridge, which stays with the host\n  name the devices behind it: see 'vmm devices'"
    )]
    Bridge(PciAddress),
    /// vfio-pci takes only what an IOMMU covers.
    #[error(
        "{0}: it is in no IOMMU group: no IOMMU covers it\n  see what this host lacks with: vmm check {0}"
    )]
    NoGroup(PciAddress),
    /// The host needs it.
    #[error(
        "{address}: the host needs it: it holds {what}\n  if the host is to lose that: vmm bind --force {address}"
    )]
    Held {
        /// The device.
        address: PciAddress,
        /// What it holds.
        what: String,
    },
    /// A VMM has it.
    #[error(
        "{address}: its group {group} is in use by a process\n  see by which with: fuser -v /dev/vfio/{group}; to take it \
         away all the same, which waits for that process: vmm unbind --force {address}"
    )]
    InUse {
        /// The device.
        address: PciAddress,
        /// Its group.
        group: u32,
    },
    /// The kernel has no vfio-pci.
    #[error(
        "{address}: the kernel has no vfio-pci driver and 'modprobe vfio-pci' failed: {why}\n  load it as root: sudo modprobe \
         vfio-pci; the kernel needs CONFIG_VFIO_PCI"
    )]
    NoDriver {
        /// The first device that needs it.
        address: PciAddress,
        /// Why.
        why: String,
    },
    /// The kernel refused a write.
    #[error("{address}: cannot {operation}: writing {path}: {source}\n  {}", mend(source))]
    Write {
        /// The device.
        address: PciAddress,
        /// What the write was to do.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// vfio-pci did not take it.
    #[error(
        "{0}: vfio-pci did not take it\n  see why with: dmesg | tail; vfio-pci refuses devices on its denylist, and all but its \
         own where the module was loaded with ids="
    )]
    NotTaken(PciAddress),
    /// vfio-pci took it again.
    #[error(
        "{0}: vfio-pci took it again: it was told of this kind of device by its ids\n  see: cat \
         /sys/module/vfio_pci/parameters/ids; take 'vfio-pci.ids=' from the kernel's command line and from /etc/modprobe.d"
    )]
    TakenAgain(PciAddress),
    /// The driver that had it did not take it back.
    #[error("{address}: {driver} did not take it back")]
    NotReturned {
        /// The device.
        address: PciAddress,
        /// Its driver from before.
        driver: String,
    },
    /// It failed, and so did the way back.
    #[error("{first}\n  and it could not be put back as it was: {second}")]
    NotUndone {
        /// What failed first.
        first: Box<Error>,
        /// What failed then.
        second: Box<Error>,
    },
    /// The report could not be written.
    #[error("the report cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

fn mend(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "run the same command as root, with sudo",
        io::ErrorKind::NotFound => "see whether it is still there with: vmm devices",
        _ => "see why with: dmesg | tail",
    }
}
