//! The PCI functions, from sysfs.

use std::fs;
use std::path::Path;

use guest::Function;

use crate::system::Error;

const DEVICES: &str = "/sys/bus/pci/devices";

/// The class code of an NVMe controller (PCI Code and ID Assignment, 1.2: 01 08 02).
pub const NVME_CLASS: &str = "010802";

/// The class code of a SATA controller with AHCI (01 06 01).
pub const SATA_CLASS: &str = "010601";

/// All functions, in the order of their addresses.
pub fn functions() -> Result<Vec<Function>, Error> {
    functions_in(Path::new(DEVICES)).map_err(Error::file("list", DEVICES))
}

/// The number of functions. A function may leave meanwhile.
pub fn count() -> Result<usize, Error> {
    fs::read_dir(DEVICES).map(Iterator::count).map_err(Error::file("list", DEVICES))
}

fn functions_in(devices: &Path) -> std::io::Result<Vec<Function>> {
    let mut found: Vec<Function> =
        fs::read_dir(devices)?.map(|entry| function(&entry?.path())).collect::<Result<_, _>>()?;
    found.sort_by(|a, b| a.address.cmp(&b.address));
    Ok(found)
}

fn function(folder: &Path) -> std::io::Result<Function> {
    let hex = |name: &str| -> std::io::Result<String> {
        Ok(fs::read_to_string(folder.join(name))?.trim().trim_start_matches("0x").to_owned())
    };
    Ok(Function {
        address: folder.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        id: format!("{}:{}", hex("vendor")?, hex("device")?),
        class: hex("class")?,
        driver: fs::read_link(folder.join("driver"))
            .ok()
            .and_then(|link| Some(link.file_name()?.to_string_lossy().into_owned())),
        bars: bars(&fs::read_to_string(folder.join("resource"))?),
    })
}

/// The first six lines of `resource` are the BARs: first address, last address, flags.
fn bars(resource: &str) -> Vec<(u64, u64)> {
    resource.lines().take(6).filter_map(bar).filter(|bar| *bar != (0, 0)).collect()
}

fn bar(line: &str) -> Option<(u64, u64)> {
    let mut fields = line
        .split_whitespace()
        .map(|field| u64::from_str_radix(field.trim_start_matches("0x"), 16).ok());
    Some((fields.next()??, fields.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_function_from_its_folder() {
        let devices = tempfile::tempdir().unwrap();
        let folder = devices.path().join("0000:00:02.0");
        fs::create_dir(&folder).unwrap();
        let bar = "0x0000000080000000 0x0000000080003fff 0x0000000000140204\n";
        let none = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n";
        for (name, text) in
            [("vendor", "0x1b36\n"), ("device", "0x0010\n"), ("class", "0x010802\n")]
        {
            fs::write(folder.join(name), text).unwrap();
        }
        fs::write(folder.join("resource"), format!("{bar}{none}")).unwrap();

        let found = functions_in(devices.path()).unwrap();

        let expected = Function {
            address: "0000:00:02.0".into(),
            id: "1b36:0010".into(),
            class: NVME_CLASS.into(),
            driver: None,
            bars: vec![(0x8000_0000, 0x8000_3fff)],
        };
        assert_eq!(found, [expected]);
    }
}
