//! Linux's 64-bit boot protocol: the zero page, and page tables to enter with.

use resources::Layout;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::bzimage::ZeroPage;
use super::{CMDLINE, HIGH_RAM, Initrd, PAGE_TABLES, START_INFO, e820};
use crate::Error;

// Fields of the zero page (Documentation/arch/x86/zero-page.rst and boot.rst).
const ACPI_RSDP_ADDR: usize = 0x070;
const E820_ENTRIES: usize = 0x1e8;
const TYPE_OF_LOADER: usize = 0x210;
const CODE32_START: usize = 0x214;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const E820_TABLE: usize = 0x2d0;
const E820_MOST: usize = 128;

/// "Undefined" in the protocol's list of boot loaders.
const LOADER: u8 = 0xff;

/// Writes the zero page.
pub fn write(
    memory: &GuestMemoryMmap,
    layout: &Layout,
    mut page: ZeroPage,
    initrd: Option<Initrd>,
    rsdp: u64,
) -> Result<(), Error> {
    page.set(TYPE_OF_LOADER, &[LOADER]);
    page.set(CODE32_START, &low(HIGH_RAM));
    page.set(CMD_LINE_PTR, &low(CMDLINE));
    if let Some(initrd) = initrd {
        page.set(RAMDISK_IMAGE, &low(initrd.range.start));
        page.set(RAMDISK_SIZE, &low(initrd.range.size));
    }
    page.set(ACPI_RSDP_ADDR, &rsdp.to_le_bytes());
    let mut map = e820::map(layout);
    map.truncate(E820_MOST);
    page.set(E820_ENTRIES, &[map.len() as u8]);
    let bytes = map.iter().flat_map(|(range, kind)| {
        let numbers = [range.start, range.size].into_iter().flat_map(u64::to_le_bytes);
        numbers.chain(kind.to_le_bytes())
    });
    page.set(E820_TABLE, &bytes.collect::<Vec<_>>());
    memory.write_slice(page.bytes(), GuestAddress(START_INFO))?;
    Ok(())
}

/// All of these lie below 4 GiB by construction.
fn low(value: u64) -> [u8; 4] {
    u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes()
}

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;
const TABLE: u64 = 0x1000;

/// Maps the first GiB to itself in pages of 2 MiB: kernel, zero page and command line are in it, as the
/// protocol demands; the kernel maps the rest itself.
pub fn write_page_tables(memory: &GuestMemoryMmap) -> Result<(), Error> {
    let [pml4, pdpt, directory] = [0, 1, 2].map(|n: u64| PAGE_TABLES.saturating_add(n.saturating_mul(TABLE)));
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
