//! Device names from the host's copy of pci.ids (<https://pci-ids.ucw.cz>).

use std::collections::HashMap;

use super::tree::{Tree, hex};

/// The paths of distributions.
const PLACES: [&str; 2] = ["usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids"];

/// Names of vendors and devices; empty if the host has no list.
#[derive(Debug, Default)]
pub(crate) struct Names {
    vendors: HashMap<u16, String>,
    devices: HashMap<(u16, u16), String>,
}

impl Names {
    /// Reads the host's list.
    pub(crate) fn of(tree: &Tree) -> Self {
        let text = PLACES.iter().find_map(|place| tree.text(place));
        Self::parse(&text.unwrap_or_default())
    }

    /// Parses lines `vvvv  vendor`, each followed by its devices as a tab and `dddd  device`; lines
    /// with two tabs are subsystems. Classes follow as `C cc  class`.
    fn parse(text: &str) -> Self {
        let mut names = Self::default();
        let mut vendor = None;
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            match line.strip_prefix('\t') {
                Some(device) => {
                    let entry = vendor.zip(entry(device));
                    names
                        .devices
                        .extend(entry.map(|(vendor, (number, name))| ((vendor, number), name)));
                }
                None => {
                    let entry = entry(line);
                    vendor = entry.as_ref().map(|(number, _)| *number);
                    names.vendors.extend(entry);
                }
            }
        }
        names
    }

    /// The name as far as it is known, otherwise numbers.
    pub(crate) fn name(&self, (vendor, device): (u16, u16), class: u32) -> String {
        match (self.vendors.get(&vendor), self.devices.get(&(vendor, device))) {
            (Some(vendor), Some(device)) => format!("{vendor} {device}"),
            (Some(vendor), None) => format!("{vendor} {device:04x}, class {class:06x}"),
            _ => format!("{vendor:04x}:{device:04x}, class {class:06x}"),
        }
    }
}

/// Parses four digits, two spaces and a name.
fn entry(line: &str) -> Option<(u16, String)> {
    let (number, name) = line.split_once("  ")?;
    let number = (number.len() == 4).then(|| hex(number)).flatten()?;
    Some((u16::try_from(number).ok()?, name.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "\
# a comment
1b36  Red Hat, Inc.
\t0010  QEMU NVM Express Controller
\t\t1af4 1100  a subsystem
8086  Intel Corporation
\t100e  82540EM
garbage
\t0001  nobody's
\u{fffd}\u{fffd}  x
C 01  Mass storage controller
\t08  Non-Volatile memory controller
";

    #[test]
    fn finds_names_and_falls_back_to_numbers() {
        let names = Names::parse(LIST);
        let cases = [
            ((0x1b36, 0x0010), "Red Hat, Inc. QEMU NVM Express Controller"),
            ((0x8086, 0x100e), "Intel Corporation 82540EM"),
            ((0x8086, 0x0001), "Intel Corporation 0001, class 010802"),
            ((0x1af4, 0x1100), "1af4:1100, class 010802"),
        ];
        cases.into_iter().for_each(|(id, name)| assert_eq!(names.name(id, 0x01_0802), name));
    }

    #[test]
    fn without_a_list_names_are_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let names = Names::of(&Tree::at(folder.path()));
        assert_eq!(names.name((0x1b36, 0x10), 0x01_0802), "1b36:0010, class 010802");
    }
}
