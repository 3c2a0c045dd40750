//! Memory in a BAR: QEMU's ivshmem (docs/specs/ivshmem-spec.rst).

use guest::Report;

use crate::pci;
use crate::registers::{Config, MEMORY, Registers};
use crate::system::Error;

/// Vendor and device ID of an ivshmem.
const ID: &str = "1af4:1110";
/// The BAR that is the memory.
pub const BAR: usize = 2;
/// The distance between two words that are written, in bytes: each page has four.
const STRIDE: usize = 1024;

/// The PCI address of the ivshmem.
pub fn address() -> Result<String, Error> {
    let found = pci::functions()?.into_iter().find(|function| function.id == ID);
    let missing = || Error::file("find", "an ivshmem")(std::io::ErrorKind::NotFound.into());
    found.map(|function| function.address).ok_or_else(missing)
}

/// Writes words across the whole memory, then reads them back.
pub fn work() -> Result<Report, Error> {
    let config = Config::open(&address()?)?;
    config.set_command(MEMORY, true)?;
    let (base, size) = config.bar(BAR)?;
    let memory = Registers::at(base, size)?;
    let offsets = || (0..usize::try_from(size).unwrap_or_default()).step_by(STRIDE);
    let value =
        |offset: usize| u32::try_from(offset & 0xffff_ffff).unwrap_or_default() ^ 0x5aa5_0ff0;
    offsets().for_each(|offset| memory.write(offset, value(offset)));
    let same = offsets().all(|offset| memory.read(offset) == value(offset));
    Ok(Report::Memory { size, words: offsets().count() as u64, same })
}
