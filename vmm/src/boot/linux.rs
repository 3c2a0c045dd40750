//! Linux's 64-bit boot protocol: the zero page, and page tables to enter with.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use resources::Layout;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{CMDLINE, Initrd, Kernel, PAGE_TABLES, START_INFO, e820};
use crate::Error;

/// "Undefined" in the protocol's list of boot loaders.
const LOADER: u8 = 0xff;

/// Writes the zero page.
pub fn write(
    memory: &GuestMemoryMmap,
    layout: &Layout,
    kernel: &Kernel,
    initrd: Option<Initrd>,
    rsdp: u64,
) -> Result<(), Error> {
    let mut params = Box::new(boot_params::default());
    if let Kernel::Linux { header, .. } = kernel {
        params.hdr = **header;
    }
    params.hdr.type_of_loader = LOADER;
    params.hdr.cmd_line_ptr = low(CMDLINE);
    if let Some(initrd) = initrd {
        params.hdr.ramdisk_image = low(initrd.range.start);
        params.hdr.ramdisk_size = low(initrd.range.size);
    }
    params.acpi_rsdp_addr = rsdp;
    for (entry, (range, kind)) in params.e820_table.iter_mut().zip(e820::map(layout)) {
        *entry = boot_e820_entry { addr: range.start, size: range.size, r#type: kind };
        params.e820_entries = params.e820_entries.saturating_add(1);
    }
    memory.write_obj(*params, GuestAddress(START_INFO))?;
    Ok(())
}

/// All of these lie below 4 GiB by construction.
fn low(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;
const TABLE: u64 = 0x1000;

/// Maps the first GiB to itself in pages of 2 MiB: kernel, zero page and command line are in it, as the
/// protocol demands; the kernel maps the rest itself.
pub fn write_page_tables(memory: &GuestMemoryMmap) -> Result<(), Error> {
    let [pml4, pdpt, directory] =
        [0, 1, 2].map(|n: u64| PAGE_TABLES.saturating_add(n.saturating_mul(TABLE)));
    memory.write_obj(pdpt | PRESENT_WRITABLE, GuestAddress(pml4))?;
    memory.write_obj(directory | PRESENT_WRITABLE, GuestAddress(pdpt))?;
    let pages = (0..512_u64).flat_map(|page| (page << 21 | LARGE | PRESENT_WRITABLE).to_le_bytes());
    memory.write_slice(&pages.collect::<Vec<_>>(), GuestAddress(directory))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use resources::AddressRange;

    use super::*;
    use crate::memory::Ram;

    #[test]
    fn page_tables_map_every_page_to_itself() {
        let ram = Ram::new(&[AddressRange::new(0, 64 << 20)]).unwrap();
        write_page_tables(ram.memory()).unwrap();
        let read = |address| ram.memory().read_obj::<u64>(GuestAddress(address)).unwrap();
        assert_eq!(read(PAGE_TABLES), (PAGE_TABLES + 0x1000) | 3);
        assert_eq!(read(PAGE_TABLES + 0x1000), (PAGE_TABLES + 0x2000) | 3);
        assert_eq!(read(PAGE_TABLES + 0x2000 + 8 * 511), (511 << 21) | 0x83);
    }
}
