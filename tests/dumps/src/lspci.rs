//! `lspci` as the reader of what a guest sees.

use std::fs;
use std::io;
use std::path::Path;

use lab::{Error, Tool};

/// What lspci prints where a config space makes no sense to it. `<?>` is no complaint: it stands
/// where lspci does not decode registers.
const COMPLAINTS: &[&str] = &[
    "<chain ",
    "<access denied",
    "<unreadable>",
    "<unassigned>",
    "<ignored>",
    "<broken-64-bit-slot>",
    "<invalid-64bit-slot>",
    "<error>",
    "<unknown>",
    "!!!",
    "Unknown type",
];

/// The text of `lspci -vvv` about the functions of a dump.
pub fn read(dump: &Path) -> Result<String, Error> {
    let output = Tool::new("lspci").args(["-vvv", "-F"]).args([dump]).output()?;
    Ok(String::from_utf8_lossy(&output).into_owned())
}

/// The same for the text of a dump.
pub fn read_text(text: &str) -> Result<String, Error> {
    let file = tempfile::NamedTempFile::new().map_err(cannot_write)?;
    fs::write(file.path(), text).map_err(cannot_write)?;
    read(file.path())
}

fn cannot_write(source: io::Error) -> Error {
    Error::File { action: "write", path: std::env::temp_dir(), source }
}

/// The lines with a complaint.
pub fn complaints(text: &str) -> Vec<&str> {
    let complains = |line: &&str| COMPLAINTS.iter().any(|words| line.contains(words));
    text.lines().filter(complains).collect()
}
