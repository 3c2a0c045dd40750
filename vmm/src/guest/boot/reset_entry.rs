//! What a guest finds where a BIOS has its reset entry, F000:FFF0.
//!
//! Linux jumps there to reboot when ACPI is hardware-reduced and it was built with EFI: it then
//! prefers EFI's reset to ACPI's reset register, and where there is no EFI goes on with the BIOS.

use devices::{PowerControl, RESET_VALUE};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::error::Error;

/// The entry's guest physical address; 16 bytes are left below 1 MiB.
pub(crate) const RESET_ENTRY: u64 = 0xf_fff0;

/// Real-mode code that writes the reset register, and waits for it to take effect.
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

/// Puts the code there.
pub(crate) fn write(memory: &GuestMemoryMmap) -> Result<(), Error> {
    Ok(memory.write_slice(&CODE, GuestAddress(RESET_ENTRY))?)
}
