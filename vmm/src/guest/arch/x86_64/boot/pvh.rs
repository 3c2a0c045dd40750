//! The PVH protocol: start info, memory map and modules.

use linux_loader::loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use linux_loader_memory::ByteValued;
use resources::{AddressRange, Layout};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::addresses::{CMDLINE, START_INFO};
use super::e820;
use crate::error::Error;

/// "xEn3", with the high bit of the E set.
const MAGIC: u32 = 0x336e_c578;
/// The first version with a memory map.
const VERSION: u32 = 1;
const MODULES: u64 = START_INFO + 0x100;
const MEMORY_MAP: u64 = START_INFO + 0x200;

/// Writes the start info and the structures that it references.
pub(crate) fn write(
    memory: &GuestMemoryMmap,
    layout: &Layout,
    initrd: Option<AddressRange>,
    rsdp: u64,
) -> Result<(), Error> {
    let entries = e820::map(layout);
    for (entry, (range, kind)) in entries.iter().enumerate() {
        let entry = (entry as u64).saturating_mul(size_of::<hvm_memmap_table_entry>() as u64);
        let at = GuestAddress(MEMORY_MAP.saturating_add(entry));
        let value = hvm_memmap_table_entry {
            addr: range.start,
            size: range.size,
            type_: *kind,
            reserved: 0,
        };
        memory.write_slice(value.as_slice(), at)?;
    }
    if let Some(initrd) = initrd {
        let module =
            hvm_modlist_entry { paddr: initrd.start, size: initrd.size, ..Default::default() };
        memory.write_slice(module.as_slice(), GuestAddress(MODULES))?;
    }
    let info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        nr_modules: u32::from(initrd.is_some()),
        modlist_paddr: MODULES,
        cmdline_paddr: CMDLINE,
        rsdp_paddr: rsdp,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: u32::try_from(entries.len()).unwrap_or(0),
        ..Default::default()
    };
    memory.write_slice(info.as_slice(), GuestAddress(START_INFO))?;
    Ok(())
}
