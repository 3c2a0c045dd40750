//! Loads kernel, initramfs and device tree into guest RAM, and returns the entry of the first CPU.
//!
//! ```text
//! start of RAM   device tree, at most 2 MiB
//! 2 MiB later    kernel
//! top            initramfs
//! ```

mod kernel;
mod refusal;
pub(super) mod registers;
mod tree;

use vm_memory::{Bytes, GuestAddress};

pub use kernel::Kernel;
pub(crate) use registers::{Entry, set_up};

use crate::error::Error;
use crate::guest::boot::{Boot, initrd};

/// Linux's `COMMAND_LINE_SIZE` for arm64, without the terminator.
const CMDLINE_LIMIT: usize = 2047;

impl Boot<'_> {
    /// Writes all boot data of `kernel` and returns the entry of the first CPU.
    pub fn prepare(&self, kernel: &Kernel) -> Result<Entry, Error> {
        let cmdline = self.whole_cmdline(None, CMDLINE_LIMIT)?;
        let load = |image| initrd::load(image, self.memory, self.layout, kernel);
        let initrd = self.initrd.map(load).transpose()?;
        let tree = tree::Tree { layout: self.layout, cpus: self.platform.cpus, initrd, cmdline };
        let bytes = tree.bytes().map_err(|error| Error::DeviceTree(error.to_string()))?;
        let tree = kernel.tree();
        self.memory.write_slice(&bytes, GuestAddress(tree))?;
        Ok(Entry { pc: kernel.start(), tree })
    }
}
