//! Linux's 64-bit boot protocol: the zero page.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader_memory::ByteValued;
use resources::{AddressRange, Layout};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::addresses::{CMDLINE, START_INFO};
use super::e820;
use super::kernel::Kernel;
use crate::error::Error;

/// "Undefined" in the protocol's list of boot loaders.
const LOADER: u8 = 0xff;

/// Writes the zero page.
pub(crate) fn write(
    memory: &GuestMemoryMmap,
    layout: &Layout,
    kernel: &Kernel,
    initrd: Option<AddressRange>,
    rsdp: u64,
) -> Result<(), Error> {
    let mut params = Box::new(boot_params::default());
    if let Kernel::Linux { header, .. } = kernel {
        params.hdr = **header;
    }
    params.hdr.type_of_loader = LOADER;
    [params.hdr.cmd_line_ptr, _] = halves(CMDLINE);
    if let Some(initrd) = initrd {
        [params.hdr.ramdisk_image, params.ext_ramdisk_image] = halves(initrd.start);
        [params.hdr.ramdisk_size, params.ext_ramdisk_size] = halves(initrd.size);
    }
    params.acpi_rsdp_addr = rsdp;
    for (entry, (range, kind)) in params.e820_table.iter_mut().zip(e820::map(layout)) {
        *entry = boot_e820_entry { addr: range.start, size: range.size, type_: kind };
        params.e820_entries = params.e820_entries.saturating_add(1);
    }
    memory.write_slice(params.as_slice(), GuestAddress(START_INFO))?;
    Ok(())
}

/// The lower and the upper 32 bits.
fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}
