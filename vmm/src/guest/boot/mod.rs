//! What the boot of a guest takes on each architecture: formats of files, the initramfs, the kernel
//! command line. `arch` loads the kernel and writes the boot data.

pub(in crate::guest) mod format;
pub(in crate::guest) mod initrd;
pub(in crate::guest) mod loader;

use resources::Layout;
use vm_memory::GuestMemoryMmap;

use crate::error::Error;
use crate::host::files::Opened;

/// The built-in kernel parameters; the user's parameters follow.
///
/// `8250.nr_uarts=1` keeps Linux from probing for three more ports, which costs about 30 exits
/// each.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0 8250.nr_uarts=1";

/// The part of the machine that the boot data describes besides the layout.
#[derive(Debug, Clone)]
pub struct Platform {
    /// The number of CPUs, which are numbered from 0.
    pub cpus: u8,
    /// PCI slots with a device that can use INTx.
    pub slots: Vec<u8>,
    /// Whether devices can come and go; then all slots can use INTx.
    pub hot_plug: bool,
}

/// The boot data of a loaded kernel.
pub struct Boot<'a> {
    /// Guest RAM.
    pub memory: &'a GuestMemoryMmap,
    /// The guest's physical layout.
    pub layout: &'a Layout,
    /// The machine.
    pub platform: &'a Platform,
    /// The initramfs, if any.
    pub initrd: Option<&'a Opened>,
    /// Whether the guest has the PCI configuration ports.
    pub pci_ports: bool,
    /// The user's kernel parameters.
    pub cmdline: &'a str,
}

impl Boot<'_> {
    /// The kernel command line: the built-in parameters, `own` ones of the architecture, and the
    /// user's.
    ///
    /// # Errors
    ///
    /// [`Error::CmdlineTooLong`] if it has more than `most` bytes.
    pub(in crate::guest) fn whole_cmdline(
        &self,
        own: Option<&str>,
        most: usize,
    ) -> Result<String, Error> {
        let user = Some(self.cmdline.trim()).filter(|cmdline| !cmdline.is_empty());
        let parts: Vec<_> = [Some(DEFAULT_CMDLINE), own, user].into_iter().flatten().collect();
        let cmdline = parts.join(" ");
        match cmdline.len() > most {
            true => Err(Error::CmdlineTooLong { length: cmdline.len(), most }),
            false => Ok(cmdline),
        }
    }
}

/// Rounds up to MiB.
pub(in crate::guest) fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}
