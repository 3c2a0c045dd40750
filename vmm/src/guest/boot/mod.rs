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
mod loader;
mod page_tables;
mod pvh;
mod reset_entry;

use resources::{AddressRange, Layout};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::error::Error;
use crate::host::files::Opened;

use addresses::CMDLINE;
use kernel::mib;

pub use acpi::Platform;
pub(crate) use acpi::{POWER_BUTTON_GSI, intx_gsi};
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
        let initrd = self.initrd.map(|image| self.load_initrd(image, kernel)).transpose()?;
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

    /// Loads the initramfs into guest RAM, at the highest address that the kernel accepts.
    fn load_initrd(&self, image: &Opened, kernel: &Kernel) -> Result<AddressRange, Error> {
        let failed = |source| image.failed(source);
        let mut file = image.rewound()?;
        let size = image.size()?;
        let start = place_initrd(size, kernel, self.layout)?;
        let bytes = usize::try_from(size).map_err(|e| failed(std::io::Error::other(e)))?;
        self.memory
            .read_exact_volatile_from(GuestAddress(start), &mut file, bytes)
            .map_err(|e| failed(io_error(e)))?;
        Ok(AddressRange::new(start, size))
    }
}

/// The highest address for the initramfs in one region of RAM.
fn place_initrd(size: u64, kernel: &Kernel, layout: &Layout) -> Result<u64, Error> {
    let usable = AddressRange::between(kernel.end(), kernel.initrd_limit());
    let pieces = layout.ram.iter().map(|range| range.intersection(&usable));
    let mut starts = pieces.clone().rev().filter_map(|piece| {
        let start = piece.end().checked_sub(size)? & !0xfff;
        (start >= piece.start && !piece.is_empty()).then_some(start)
    });
    starts.next().ok_or_else(|| Error::DoesNotFit {
        what: "the initrd",
        needs: mib(size),
        has: pieces.map(|piece| piece.size).max().unwrap_or(0) >> 20,
    })
}

/// Extracts the errno from a failed read into guest memory.
fn io_error(error: vm_memory::GuestMemoryError) -> std::io::Error {
    match error {
        vm_memory::GuestMemoryError::IOError(error) => error,
        other => std::io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::layout::fixture::layout;

    #[test]
    fn places_an_initrd_in_one_region_as_high_as_the_kernel_accepts() {
        let kernel = Kernel::Pvh { entry: 1 << 20, end: 16 << 20 };
        let layout = layout("6G", &[(0x1000_0000, 0x101f_ffff), (0xb000_0000, 0xb000_0fff)]);
        // The regions: up to 256 MiB, 258 MiB to 2816 MiB, up to 3 GiB, and above 4 GiB,
        // which is too high.
        let cases = [
            (1 << 20, Some((3 << 30) - (1 << 20))),
            (1, Some((3 << 30) - 4096)),
            (1 << 30, Some((2816 << 20) - (1 << 30))),
            (3 << 30, None),
        ];
        for (size, place) in cases {
            assert_eq!(place_initrd(size, &kernel, &layout).ok(), place, "{size:#x}");
        }
        let text = place_initrd(3 << 30, &kernel, &layout).unwrap_err().to_string();
        assert!(text.contains("it needs 3072 MiB, and only 2558 MiB are free for it"), "{text}");
    }
}
