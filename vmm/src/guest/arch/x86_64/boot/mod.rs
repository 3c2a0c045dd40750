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
mod kernel;
mod linux;
#[cfg(test)]
mod loading;
mod page_tables;
mod pvh;
mod refusal;
mod reset_entry;
#[cfg(test)]
mod tests;

use vm_memory::{Bytes, GuestAddress};

use crate::error::Error;
use crate::guest::boot::{Boot, initrd};

pub(crate) use acpi::{HOT_PLUG_PIN, POWER_BUTTON_PIN, intx_gsi};
use addresses::CMDLINE;
pub(crate) use kernel::Entry;
pub use kernel::Kernel;

/// Keeps Linux from probing for chipsets with quirks before it enumerates PCI: 64 exits, and 33,000
/// on AMD CPUs of family 15, where Linux searches 256 buses for an AGP bridge. The parameter is for
/// guests with PCI ports only: without ports Linux would have no configuration access until it
/// finds ECAM, and log an error.
const NO_EARLY_PCI: &str = "pci=noearly";

impl Boot<'_> {
    /// Writes all boot data of `kernel` and returns the entry of the first CPU.
    pub fn prepare(&self, kernel: &Kernel) -> Result<Entry, Error> {
        let rsdp = acpi::write(self.memory, self.layout, self.platform)?;
        reset_entry::write(self.memory)?;
        let early = self.pci_ports.then_some(NO_EARLY_PCI);
        let cmdline = self.whole_cmdline(early, kernel.cmdline_limit())?;
        self.memory.write_slice(&[cmdline.as_bytes(), b"\0"].concat(), GuestAddress(CMDLINE))?;
        let load = |image| initrd::load(image, self.memory, self.layout, kernel);
        let initrd = self.initrd.map(load).transpose()?;
        match kernel {
            Kernel::Linux { .. } => linux::write(self.memory, self.layout, kernel, initrd, rsdp)?,
            Kernel::Pvh { .. } => pvh::write(self.memory, self.layout, initrd, rsdp)?,
        }
        kernel.entry(self.memory)
    }
}
