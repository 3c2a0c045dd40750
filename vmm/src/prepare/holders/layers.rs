//! From a disk or a network interface down to PCI functions, through all device layers.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use vfio_passthrough::PciAddress;

use super::super::tree::{Tree, names};

/// A limit above the number of device layers below one file system on every known host.
const MOST_LAYERS: usize = 1024;

/// The PCI functions below the device with this folder, through all device layers.
pub(super) fn functions(folder: &Path) -> BTreeSet<PciAddress> {
    let (mut seen, mut found) = (BTreeSet::new(), BTreeSet::new());
    let mut left = vec![folder.to_owned()];
    while let Some(folder) = left.pop() {
        // A loop of links does not resolve, and `seen` ends a loop of layers.
        let Ok(folder) = folder.canonicalize() else {
            continue;
        };
        if seen.len() >= MOST_LAYERS || !seen.insert(folder.clone()) {
            continue;
        }
        // All functions on the path count: a VMD has NVMes of another PCI domain below it.
        found.extend(folder.iter().filter_map(|name| name.to_str()?.parse::<PciAddress>().ok()));
        left.extend(lower(&folder));
    }
    found
}

/// The lower layers of a device: the disks of a device mapper or array (a partition has those of
/// its disk), the interfaces of a bridge, bond or VLAN, and the controllers of a multipath NVMe.
fn lower(folder: &Path) -> Vec<PathBuf> {
    let whole = [Some(folder), folder.parent()].into_iter().flatten();
    let mut below: Vec<_> = whole.flat_map(|disk| entries(&disk.join("slaves"), "")).collect();
    below.extend(entries(folder, "lower_"));
    let subsystem = |path: &&Path| {
        let name = path.file_name().and_then(|name| name.to_str());
        let number = name.and_then(|name| name.strip_prefix("nvme-subsys"));
        number.is_some_and(|number| number.parse::<u32>().is_ok())
    };
    below.extend(
        folder.ancestors().find(subsystem).map(|path| entries(path, "nvme")).into_iter().flatten(),
    );
    below
}

/// The entries of a folder whose names begin with `prefix`.
pub(super) fn entries(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let names = names(folder).into_iter().filter(|name| name.starts_with(prefix));
    names.map(|name| folder.join(name)).collect()
}

/// The folder of the block device `/dev/...`, which may be a symbolic link.
pub(super) fn block_by_name(tree: &Tree, source: &str) -> Option<PathBuf> {
    let path = source.starts_with("/dev/").then(|| tree.path(source))?;
    let path = path.canonicalize().unwrap_or(path);
    let folder = tree.path("sys/class/block").join(path.file_name()?);
    folder.exists().then_some(folder)
}

/// The folder of the `block` or `char` device `major:minor`.
pub(super) fn by_number(tree: &Tree, kind: &str, number: &str) -> Option<PathBuf> {
    let (major, minor) = number.split_once(':')?;
    let (major, minor): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
    let folder = tree.path(&format!("sys/dev/{kind}/{major}:{minor}"));
    folder.exists().then_some(folder)
}

/// The functions below an entry of a folder of sysfs.
pub(super) fn functions_of(tree: &Tree, folder: &str, name: &str) -> BTreeSet<PciAddress> {
    functions(&tree.path(&format!("{folder}/{name}")))
}
