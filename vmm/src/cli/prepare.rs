//! The commands that prepare the host: `vmm check`, `devices`, `bind`, `unbind`.

use std::path::Path;

use clap::Subcommand;
use vfio_passthrough::PciAddress;
use vfio_passthrough::address::ParsePciAddressError;

use crate::config::Memory;
use crate::host::pci_path;

/// A command that prepares the host.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum PrepareCommand {
    /// Check whether this host and its devices are ready for a guest, and print remedies
    ///
    /// Exit status: 0 if nothing fails, 1 otherwise.
    Check {
        /// PCI devices: addresses (0000:01:00.0) or sysfs paths
        #[arg(value_name = "DEVICE", value_parser = address)]
        devices: Vec<PciAddress>,
        /// RAM of the future guest, as for a guest's --memory
        #[arg(long, value_name = "SIZE[,OPTION]...", default_value = "512M")]
        memory: Memory,
        /// Print an array of {check, device, status, what, remedy}
        #[arg(long)]
        json: bool,
    },
    /// List PCI devices with their group, their driver, and what prevents their assignment
    Devices {
        /// Print an array
        #[arg(long)]
        json: bool,
    },
    /// Bind devices to vfio-pci (as root); a device that is already bound stays bound
    ///
    /// The command binds all named devices, or none if one fails. The host loses them; 'vmm unbind'
    /// or a reboot of the host brings them back.
    Bind {
        /// PCI devices: addresses (0000:01:00.0) or sysfs paths
        #[arg(value_name = "DEVICE", value_parser = address, required = true)]
        devices: Vec<PciAddress>,
        /// Also bind a device that the host uses: for a disk in use, a network interface with an
        /// address, a display, a console, a keyboard, or a process that has it open
        #[arg(long)]
        force: bool,
    },
    /// Return devices to their drivers (as root); a device with its own driver keeps it
    Unbind {
        /// PCI devices: addresses (0000:01:00.0) or sysfs paths
        #[arg(value_name = "DEVICE", value_parser = address, required = true)]
        devices: Vec<PciAddress>,
        /// Also unbind a device in use, and wait until its user detaches it, and a physical function
        /// whose virtual functions exist
        #[arg(long)]
        force: bool,
    },
}

pub(super) fn address(text: &str) -> Result<PciAddress, ParsePciAddressError> {
    pci_path::address(Path::new(text))
}
