//! The PVH protocol: start info, memory map and modules, one after the other.

use resources::Layout;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{CMDLINE, Initrd, START_INFO, e820};
use crate::Error;

/// "xEn3", with the high bit of the E.
const MAGIC: u32 = 0x336e_c578;
/// The first version with a memory map.
const VERSION: u32 = 1;
const MODULES: u64 = START_INFO + 0x100;
const MEMORY_MAP: u64 = START_INFO + 0x200;

/// Writes the start info and all that it points to (xen/include/public/arch-x86/hvm/start_info.h).
pub fn write(
    memory: &GuestMemoryMmap,
    layout: &Layout,
    initrd: Option<Initrd>,
    rsdp: u64,
) -> Result<(), Error> {
    let map = e820::map(layout);
    let entries = map
        .iter()
        .flat_map(|(range, kind)| [range.start, range.size, u64::from(*kind)]);
    write_words(memory, MEMORY_MAP, entries)?;
    if let Some(Initrd { range }) = initrd {
        // It has no command line.
        write_words(memory, MODULES, [range.start, range.size, 0, 0])?;
    }
    let info = [
        pair(MAGIC, VERSION),
        // No flags; how many modules.
        pair(0, initrd.is_some().into()),
        MODULES,
        CMDLINE,
        rsdp,
        MEMORY_MAP,
        map.len() as u64,
    ];
    write_words(memory, START_INFO, info)
}

/// Two fields of 32 bits.
fn pair(first: u32, second: u32) -> u64 {
    u64::from(second) << 32 | u64::from(first)
}

fn write_words(
    memory: &GuestMemoryMmap,
    gpa: u64,
    words: impl IntoIterator<Item = u64>,
) -> Result<(), Error> {
    let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
    memory.write_slice(&bytes, GuestAddress(gpa))?;
    Ok(())
}
