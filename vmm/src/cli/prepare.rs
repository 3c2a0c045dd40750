//! The commands that prepare the host: `vmm check`, `devices`, `bind`, `unbind`.

use std::path::Path;

use clap::Subcommand;
use vfio_passthrough::PciAddress;
use vfio_passthrough::address::ParsePciAddressError;

use crate::config::Memory;
use crate::host::pci_path;

/// A command that prepares.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum PrepareCommand {
    /// Say whether this host, and devices of it, are ready for a guest, and what mends what is not
    ///
    /// Exit status: 0 if nothing fails, 1 otherwise.
    Check {
        /// PCI devices: their addresses (0000:01:00.0) or sysfs paths
        #[arg(value_name = "DEVICE", value_parser = address)]
        devices: Vec<PciAddress>,
        /// RAM of the guest to come, as it would be given
        #[arg(long, value_name = "SIZE[,OPTION]...", default_value = "512M")]
        memory: Memory,
        /// Print an array of {check, device, status, what, mend}
        #[arg(long)]
        json: bool,
    },
    /// List PCI devices: group, driver, whether they can be assigned or why not
    Devices {
        /// Print an array
        #[arg(long)]
        json: bool,
    },
    /// Give devices to vfio-pci; what is there already stays (as root)
    ///
    /// All that are named, or none if one fails. The host loses them; 'vmm unbind' brings them
    /// back, and so does a reboot.
    Bind {
        /// PCI devices: their addresses (0000:01:00.0) or sysfs paths
        #[arg(value_name = "DEVICE", value_parser = address, required = true)]
        devices: Vec<PciAddress>,
        /// Even one that holds a mounted file system, swap or the default route
        #[arg(long)]
        force: bool,
    },
    /// Give devices back to their drivers; what is there already stays (as root)
    Unbind {
        /// PCI devices: their addresses (0000:01:00.0) or sysfs paths
        #[arg(value_name = "DEVICE", value_parser = address, required = true)]
        devices: Vec<PciAddress>,
        /// Even one in use: waits until its user lets it go
        #[arg(long)]
        force: bool,
    },
}

fn address(text: &str) -> Result<PciAddress, ParsePciAddressError> {
    pci_path::address(Path::new(text))
}
