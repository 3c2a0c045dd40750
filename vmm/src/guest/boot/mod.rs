//! Loads kernel, initramfs and boot data into guest RAM, and returns the entry of the first CPU.
//!
//! ```text
//! 0x0500    GDT
//! 0x7000    zero page (Linux protocol) or start info, memory map and modules (PVH)
//! 0x9000    page tables, for the 64-bit entry
//! 0x20000   kernel command line
//! 0xe0000   ACPI tables, RSDP first
//! 0x100000  kernel
//! top       initramfs, below the kernel's limit for it
//! ```

mod acpi;
mod addresses;
mod e820;
mod format;
mod initrd;
mod kernel;
mod linux;
mod loader;
mod page_tables;
mod pvh;
mod refusal;
mod reset_entry;

use resources::Layout;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::error::Error;
use crate::host::files::Opened;

pub use acpi::Platform;
pub(crate) use acpi::{HOT_PLUG_GSI, POWER_BUTTON_GSI, intx_gsi};
use addresses::CMDLINE;
pub(crate) use kernel::Entry;
pub use kernel::Kernel;

/// The built-in kernel parameters; the user's parameters follow.
///
/// `8250.nr_uarts=1` keeps Linux from probing for three more ports, which costs about 30 exits
/// each.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0 8250.nr_uarts=1";

/// Keeps Linux from probing for chipsets with quirks before it enumerates PCI: 64 exits, and 33,000
/// on AMD CPUs of family 15, where Linux searches 256 buses for an AGP bridge. The parameter is for
/// guests with PCI ports only: without ports Linux would have no configuration access until it
/// finds ECAM, and log an error.
const NO_EARLY_PCI: &str = "pci=noearly";

/// The boot data of a loaded kernel.
pub struct Boot<'a> {
    /// Guest RAM.
    pub memory: &'a GuestMemoryMmap,
    /// The guest's physical layout.
    pub layout: &'a Layout,
    /// The contents of the ACPI tables.
    pub platform: &'a Platform,
    /// The initramfs, if any.
    pub initrd: Option<&'a Opened>,
    /// Whether the guest has the PCI configuration ports.
    pub pci_ports: bool,
    /// The user's kernel parameters.
    pub cmdline: &'a str,
}

impl Boot<'_> {
    /// Writes all boot data of `kernel` and returns the entry of the first CPU.
    pub fn prepare(&self, kernel: &Kernel) -> Result<Entry, Error> {
        let rsdp = acpi::write(self.memory, self.layout, self.platform)?;
        reset_entry::write(self.memory)?;
        self.write_cmdline(kernel.cmdline_limit())?;
        let load = |image| initrd::load(image, self.memory, self.layout, kernel);
        let initrd = self.initrd.map(load).transpose()?;
        match kernel {
            Kernel::Linux { .. } => linux::write(self.memory, self.layout, kernel, initrd, rsdp)?,
            Kernel::Pvh { .. } => pvh::write(self.memory, self.layout, initrd, rsdp)?,
        }
        kernel.entry(self.memory)
    }

    fn write_cmdline(&self, most: usize) -> Result<(), Error> {
        let early = self.pci_ports.then_some(NO_EARLY_PCI);
        let user = Some(self.cmdline.trim()).filter(|cmdline| !cmdline.is_empty());
        let parts: Vec<_> = [Some(DEFAULT_CMDLINE), early, user].into_iter().flatten().collect();
        let cmdline = parts.join(" ");
        if cmdline.len() > most {
            return Err(Error::CmdlineTooLong { length: cmdline.len(), most });
        }
        self.memory.write_slice(&[cmdline.as_bytes(), b"\0"].concat(), GuestAddress(CMDLINE))?;
        Ok(())
    }
}
