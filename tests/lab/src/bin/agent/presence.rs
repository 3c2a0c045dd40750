//! Puts PCI functions to sleep, and cuts them off their bus, behind the kernel: by writes of config
//! space in sysfs.

use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The agent's first argument to put the function whose address is the second argument into the
/// power state that is the third argument.
const POWER: &str = "power";
/// The agent's first argument to make the port of a function not forward config accesses: the
/// function then reads as all-ones.
const CUT: &str = "cut";
/// The agent's first argument to undo `CUT`.
const JOIN: &str = "join";

/// The secondary and the subordinate bus number of a bridge (PCI-to-PCI Bridge 1.2, 3.2.5).
const BUSES: u64 = 0x19;

/// Performs an act, and returns what to print; `None` if the word is no act.
pub fn act(word: &str, address: &str, rest: &[String]) -> Option<String> {
    let done = match word {
        POWER => power(address, rest.first()?.parse().ok()?),
        CUT => cut(address, 0),
        JOIN => bus_of(address).and_then(|bus| cut(address, bus)),
        _ => return None,
    };
    Some(done.unwrap_or_else(|error| error.to_string()))
}

fn folder(address: &str) -> PathBuf {
    Path::new("/sys/bus/pci/devices").join(address)
}

fn config(folder: &Path) -> Result<File> {
    File::options().read(true).write(true).open(folder.join("config"))
}

/// Writes a power state; returns the states before and after.
fn power(address: &str, state: u8) -> Result<String> {
    let config = config(&folder(address))?;
    let control = power_control(&config)?;
    let read = || {
        let mut control_byte = [0];
        config.read_exact_at(&mut control_byte, control).map(|()| control_byte[0] & 3)
    };
    let before = read()?;
    config.write_all_at(&[state], control)?;
    Ok(format!("from {before} to {}", read()?))
}

/// The offset of the power management control register.
fn power_control(config: &File) -> Result<u64> {
    let mut header = [0; 64];
    config.read_exact_at(&mut header, 0)?;
    let mut next = header[0x34];
    for _ in 0..48 {
        let mut capability = [0; 2];
        config.read_exact_at(&mut capability, next.into())?;
        if capability[0] == 1 {
            return Ok(u64::from(next) + 4);
        }
        next = capability[1];
    }
    Err(ErrorKind::NotFound.into())
}

fn bus_of(address: &str) -> Result<u8> {
    let bus = address.split(':').nth(1).and_then(|bus| u8::from_str_radix(bus, 16).ok());
    bus.ok_or_else(|| Error::from(ErrorKind::InvalidInput))
}

/// Writes the bus numbers of the function's port.
fn cut(address: &str, bus: u8) -> Result<String> {
    let port = folder(address).canonicalize()?.join("..");
    config(&port)?.write_all_at(&[bus, bus], BUSES)?;
    Ok(format!("behind bus {bus}"))
}
