//! Page tables for the entry of a 64-bit kernel.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::addresses::PAGE_TABLES;
use crate::error::Error;

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;
const TABLE: u64 = 0x1000;

/// Maps the first GiB to itself in 2 MiB pages. The protocol requires that kernel, zero page and
/// command line are mapped; the kernel maps the rest itself.
pub(crate) fn write(memory: &GuestMemoryMmap) -> Result<(), Error> {
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
    use crate::guest::memory::Ram;

    #[test]
    fn page_tables_map_every_page_to_itself() {
        let ram = Ram::new(&[AddressRange::new(0, 64 << 20)]).unwrap();
        write(ram.memory()).unwrap();
        let read = |address| ram.memory().read_obj::<u64>(GuestAddress(address)).unwrap();
        assert_eq!(read(PAGE_TABLES), (PAGE_TABLES + 0x1000) | 3);
        assert_eq!(read(PAGE_TABLES + 0x1000), (PAGE_TABLES + 0x2000) | 3);
        assert_eq!(read(PAGE_TABLES + 0x2000 + 8 * 511), (511 << 21) | 0x83);
    }
}
