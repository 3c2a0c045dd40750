//! Code at the reset entry of a BIOS, F000:FFF0.
//!
//! A Linux that was built with EFI jumps to this address to reboot with hardware-reduced ACPI: it
//! prefers EFI's reset to ACPI's reset register, and without EFI falls back to the BIOS.

use devices::{PowerControl, RESET_VALUE};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::error::Error;

/// The entry's guest physical address; 16 bytes remain below 1 MiB.
pub(crate) const RESET_ENTRY: u64 = 0xf_fff0;

/// Real-mode code that writes the reset register and halts.
const CODE: [u8; 9] = {
    let [low, high] = PowerControl::RESET.to_le_bytes();
    [
        0xba,
        low,
        high, // mov dx, RESET
        0xb0,
        RESET_VALUE, // mov al, RESET_VALUE
        0xee,        // out dx, al
        0xf4,        // hlt
        0xeb,
        0xfd, // jmp to the hlt
    ]
};

/// Writes the code to the reset entry.
pub(crate) fn write(memory: &GuestMemoryMmap) -> Result<(), Error> {
    Ok(memory.write_slice(&CODE, GuestAddress(RESET_ENTRY))?)
}
