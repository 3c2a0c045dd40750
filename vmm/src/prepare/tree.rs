//! Reads files below `/sys`, `/proc` and `/dev`. The root folder is a parameter, so that tests can
//! use fake trees. Invalid contents count as a missing file.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use vfio_passthrough::PciAddress;

/// A limit above the size of all of these files; `/proc/interrupts` of a large host is the longest.
const MOST_BYTES: u64 = 32 << 20;

/// The files of a host.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    root: PathBuf,
}

impl Tree {
    /// The files below `root`.
    pub(crate) fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The path of a file, given with or without the leading `/`.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name.trim_start_matches('/'))
    }

    /// The bytes of a file.
    pub(crate) fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        self.read(name).ok()
    }

    /// The bytes of a file, or the errno of the failed call.
    pub(crate) fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = File::open(self.path(name))?;
        file.take(MOST_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// The text of a file; invalid UTF-8 is replaced.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        let bytes = self.bytes(name)?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The first line of a file, if it is not empty.
    pub(crate) fn line(&self, name: &str) -> Option<String> {
        let text = self.text(name)?;
        let line = text.lines().next()?.trim();
        (!line.is_empty()).then(|| line.to_owned())
    }

    /// The hexadecimal number in a file.
    pub(crate) fn hex(&self, name: &str) -> Option<u64> {
        hex(&self.line(name)?)
    }

    /// The names in a folder that are valid UTF-8, sorted.
    pub(crate) fn names(&self, folder: &str) -> Vec<String> {
        names(&self.path(folder))
    }
}

/// The path of a device's sysfs attribute.
pub(crate) fn attribute(address: PciAddress, name: &str) -> String {
    format!("sys/bus/pci/devices/{address}/{name}")
}

/// The names in a folder that are valid UTF-8, sorted.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// A hexadecimal number with or without `0x`.
pub(crate) fn hex(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    // from_str_radix would accept a sign.
    let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    plain.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_hexadecimal_numbers() {
        let cases = [
            ("0x8086", Some(0x8086)),
            ("8086", Some(0x8086)),
            ("0xffffffffffffffff", Some(u64::MAX)),
            ("0x1ffffffffffffffff", None),
            ("", None),
            ("0x", None),
            ("-1", None),
            ("+1", None),
            ("\u{fffd}", None),
        ];
        cases.into_iter().for_each(|(text, number)| assert_eq!(hex(text), number, "{text:?}"));
    }
}
