//! sysfs that lies: names, links, groups and reserved regions of whatever kind.

use std::fs;
use std::os::unix::fs::symlink;

use vfio_passthrough::PciAddress;
use vfio_passthrough::backend::sysfs::Sysfs;

use crate::input::Input;

const DRIVERS: [&str; 6] = ["vfio-pci", "mlx5_vfio_pci", "nvme", "pcieport", "", ".."];

/// A name that a file can have.
fn name(input: &mut Input<'_>) -> String {
    let kind = input.u8();
    match DRIVERS.get(usize::from(kind)) {
        Some(driver) => (*driver).to_owned(),
        None if kind & 1 == 0 => input.u16().to_string(),
        None => String::from_utf8_lossy(&input.run())
            .replace(['/', '\0'], "_")
            .chars()
            .take(60)
            .collect(),
    }
}

pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let tree = tempfile::tempdir().unwrap();
    let address: PciAddress = "0000:01:00.0".parse().unwrap();
    let devices = tree.path().join("bus/pci/devices");
    let (mut drivers, mut groups) = (Vec::new(), Vec::new());
    for function in 0..1 + (input.u8() & 3) {
        let folder = devices.join(format!("0000:01:00.{function}"));
        fs::create_dir_all(&folder).unwrap();
        let kind = input.u8();
        let (driver, group) = (name(&mut input), name(&mut input));
        if kind & 1 != 0 {
            // An entry that is no link, or one without a target, cannot be read.
            let _ = fs::write(folder.join("driver"), []);
        } else if kind & 2 == 0 {
            let _ = symlink(format!("../drivers/{driver}"), folder.join("driver"));
        }
        if kind & 4 != 0 {
            fs::create_dir(folder.join("vfio-dev")).unwrap();
        }
        if kind & 8 == 0 {
            let _ = symlink(format!("../groups/{group}"), folder.join("iommu_group"));
        }
        let members = tree.path().join("kernel/iommu_groups/1/devices");
        fs::create_dir_all(&members).unwrap();
        let member =
            if kind & 16 == 0 { format!("0000:01:00.{function}") } else { name(&mut input) };
        let _ = symlink(&folder, members.join(member));
        drivers.push((kind, driver));
        groups.push(group);
    }
    let sysfs = Sysfs::at(tree.path());
    if let Ok(group) = sysfs.ready_group(address) {
        assert_eq!(groups[0].parse(), Ok(group), "the group is the link's");
        let (kind, driver) = &drivers[0];
        assert!(driver.contains("vfio") || kind & 4 != 0, "{driver} is no driver of VFIO");
    }
    let text = sysfs.not_viable(address, 1).to_string();
    assert!(text.starts_with("0000:01:00.0: IOMMU group 1 is not viable: "), "{text}");
    assert!(!text.contains("is bound to vfio-pci;"), "{text}");
    fs::write(tree.path().join("kernel/iommu_groups/1/reserved_regions"), input.0).unwrap();
    let regions = sysfs.reserved_regions(1);
    assert!(regions.iter().all(|region| !region.range.is_empty()));
}
