//! Expansion ROMs, which the kernel reads through the ROM BAR (PCI 3.0, 6.3).

use std::fs;

use guest::Report;
use sha2::{Digest as _, Sha256};

use crate::pci;
use crate::system::Error;

/// Reads the ROM of each function that has one.
pub fn look() -> Result<Vec<Report>, Error> {
    let functions = pci::functions()?.into_iter();
    functions.filter_map(|function| read(&function.address).transpose()).collect()
}

fn read(address: &str) -> Result<Option<Report>, Error> {
    let path = format!("/sys/bus/pci/devices/{address}/rom");
    if !fs::exists(&path).map_err(Error::file("find", &path))? {
        return Ok(None);
    }
    // Writing 1 allows reads of the attribute, for which the kernel turns the ROM's decoding on.
    fs::write(&path, "1").map_err(Error::file("write", &path))?;
    let content = fs::read(&path).map_err(Error::file("read", &path))?;
    fs::write(&path, "0").map_err(Error::file("write", &path))?;
    let sha256 = Sha256::digest(&content);
    Ok(Some(Report::Rom {
        address: address.to_owned(),
        bytes: content.len() as u64,
        sha256: sha256.iter().map(|byte| format!("{byte:02x}")).collect(),
    }))
}
