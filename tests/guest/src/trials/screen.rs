//! Displays.

use std::fs;
use std::io::Write as _;

use super::{open, wait_for};
use crate::pci;
use crate::registers::Registers;
use crate::system::{Error, read};

/// Vendor and device ID of the Cirrus Logic GD5446, and its BAR with copies of the VGA ports from
/// 0x3c0 on.
const CIRRUS: &str = "1013:00b8";
const PORTS: usize = 1;
const DRIVER: &str = "/sys/bus/pci/drivers/cirrus";
/// The bit of port 0x3c2 that gives the CRTC its ports of a colour display.
const MISCELLANEOUS: usize = 2;
const COLOUR: u8 = 1;
/// The bit of port 0x3c0 that connects the screen.
const ATTRIBUTE: usize = 0;
const CONNECTED: u8 = 0x20;

/// Fills the screen with one colour: 0x20 of blue, 0x60 of green and 0xe0 of red.
pub fn fill() -> Result<String, Error> {
    const WIDE: [u8; 4] = [0x20, 0x60, 0xe0, 0xff];
    /// The same with 5 bits of blue and red, and 6 of green.
    const NARROW: [u8; 2] = [0x04, 0xe3];
    let path = wait_for("/dev", "fb")?;
    let bits = read("/sys/class/graphics/fb0/bits_per_pixel")?;
    let pixel = if bits.trim() == "16" { NARROW.as_slice() } else { &WIDE };
    let (mut file, mut written) = (open(&path)?, 0_usize);
    // A write at the end of the screen is short, and the next one fails.
    while let Ok(count @ 1..) = file.write(&pixel.repeat(1 << 14)) {
        written = written.saturating_add(count);
    }
    Ok(format!("{written} bytes"))
}

/// Does by a BAR of a Cirrus what its firmware and its driver do by the VGA ports, which VFIO does
/// not give to a guest (cirrus_crtc_helper_atomic_enable).
pub fn turn_on() -> Result<String, Error> {
    wait_for("/dev", "fb")?;
    let found = pci::functions()?.into_iter().find(|function| function.id == CIRRUS);
    let missing = || Error::file("find", "a Cirrus")(std::io::ErrorKind::NotFound.into());
    let address = found.ok_or_else(missing)?.address;
    let ports = Registers::of(&address, PORTS, 0x1000)?;
    ports.write_byte(MISCELLANEOUS, COLOUR);
    for file in ["unbind", "bind"] {
        let path = format!("{DRIVER}/{file}");
        fs::write(&path, &address).map_err(Error::file("write", &path))?;
    }
    ports.write_byte(ATTRIBUTE, CONNECTED);
    wait_for("/dev", "fb")
}
