//! Target `sysfs`: malformed names, links, groups and reserved regions in sysfs.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use vfio_passthrough::PciAddress;
use vfio_passthrough::backend::sysfs::Sysfs;

use crate::input::Input;

const DRIVERS: [&str; 6] = ["vfio-pci", "mlx5_vfio_pci", "nvme", "pcieport", "", ".."];

/// A valid file name.
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

/// What the input says about a function.
struct Function {
    kind: u8,
    driver: String,
    group: String,
    physical: Option<PciAddress>,
}

impl Function {
    /// Whether it has the folder `vfio-dev`, as a function on a VFIO driver has.
    fn has_vfio_dev(&self) -> bool {
        self.kind & 4 != 0
    }
}

/// Makes the files of function `number` below `tree`.
fn make_function(tree: &Path, number: u8, input: &mut Input<'_>) -> Function {
    let folder = tree.join(format!("bus/pci/devices/0000:01:00.{number}"));
    fs::create_dir_all(&folder).unwrap();
    let kind = input.u8();
    let mut function = Function { kind, driver: name(input), group: name(input), physical: None };
    if kind & 1 != 0 {
        // The entry is a file, where the code expects a link.
        let _ = fs::write(folder.join("driver"), []);
    } else if kind & 2 == 0 {
        let _ = symlink(format!("../drivers/{}", function.driver), folder.join("driver"));
    }
    if function.has_vfio_dev() {
        fs::create_dir(folder.join("vfio-dev")).unwrap();
    }
    if kind & 8 == 0 {
        let _ = symlink(format!("../groups/{}", function.group), folder.join("iommu_group"));
    }
    if kind & 32 != 0 {
        let target = if kind & 64 == 0 { "0000:01:00.3".to_owned() } else { name(input) };
        let made = symlink(format!("../{target}"), folder.join("physfn"));
        function.physical = target.parse().ok().filter(|_| made.is_ok());
    }
    let members = tree.join("kernel/iommu_groups/1/devices");
    fs::create_dir_all(&members).unwrap();
    let member = if kind & 16 == 0 { format!("0000:01:00.{number}") } else { name(input) };
    let _ = symlink(&folder, members.join(member));
    function
}

pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let tree = tempfile::tempdir().unwrap();
    let address: PciAddress = "0000:01:00.0".parse().unwrap();
    let count = 1 + (input.u8() & 3);
    let functions: Vec<_> =
        (0..count).map(|number| make_function(tree.path(), number, &mut input)).collect();
    let sysfs = Sysfs::at(tree.path());
    if let Ok(group) = sysfs.ready_group(address) {
        let Function { driver, group: link, .. } = &functions[0];
        assert_eq!(link.parse(), Ok(group), "the group is the link's");
        let is_vfio = driver.contains("vfio") || functions[0].has_vfio_dev();
        assert!(is_vfio, "{driver} is no driver of VFIO");
    }
    let physical = sysfs.physical_function(address);
    assert_eq!(physical, functions[0].physical, "the physical function is the link's");
    assert!(!sysfs.lacks_groups(), "the tree has no classes");
    let text = sysfs.not_viable(address, 1).to_string();
    assert!(text.starts_with("0000:01:00.0: IOMMU group 1 is not viable: "), "{text}");
    assert!(!text.contains("is bound to vfio-pci;"), "{text}");
    fs::write(tree.path().join("kernel/iommu_groups/1/reserved_regions"), input.0).unwrap();
    let regions = sysfs.reserved_regions(1);
    assert!(regions.iter().all(|region| !region.range.is_empty()));
    is_copied(&sysfs, address);
}

/// A copy answers what the tree answers.
fn is_copied(sysfs: &Sysfs, address: PciAddress) {
    let copy = Sysfs::of_copy(sysfs.copy(address, None));
    if let Ok(group) = sysfs.ready_group(address) {
        assert_eq!(copy.ready_group(address).ok(), Some(group));
    }
    let answers = |sysfs: &Sysfs| {
        let group = sysfs.group(address);
        let members = group.map(|group| sysfs.members(group));
        let regions = group.map(|group| sysfs.reserved_regions(group));
        let driver = (sysfs.driver(address), sysfs.is_vfio(address));
        (group, members, regions, driver, sysfs.physical_function(address), sysfs.cdev(address))
    };
    assert_eq!(answers(&copy), answers(sysfs));
}
