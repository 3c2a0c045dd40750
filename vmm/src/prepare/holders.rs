//! Uses of devices by the host itself: disks with mounted file systems or swap, and NICs with the
//! default route.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use vfio_passthrough::PciAddress;

use super::tree::{Tree, hex, names};

/// A limit above the number of device layers below one file system on every known host.
const MOST_LAYERS: usize = 1024;

/// A use that would end if the host lost the devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    /// The description of the use.
    pub(crate) what: String,
    /// The devices below the use, and their upstream bridges.
    pub(crate) devices: BTreeSet<PciAddress>,
}

/// All uses of devices by the host.
pub(crate) fn holders(tree: &Tree) -> Vec<Holder> {
    let mut holders = mounts(tree);
    holders.extend(swaps(tree));
    holders.extend(default_routes(tree));
    holders.retain(|holder| !holder.devices.is_empty());
    holders
}

/// Parses mountinfo: `id parent major:minor root place options... - kind source options` (proc(5)).
fn mounts(tree: &Tree) -> Vec<Holder> {
    let text = tree.text("proc/self/mountinfo").unwrap_or_default();
    let mount = |line: &str| {
        let (front, back) = line.split_once(" - ")?;
        let number = front.split(' ').nth(2)?;
        let place = front.split(' ').nth(4)?;
        let source = back.split(' ').nth(1)?;
        let what = match place {
            "/" => format!("the root file system ({source})"),
            _ => format!("the file system on {place} ({source})"),
        };
        // btrfs and others have a number without a block device; their source names one.
        let folder = by_number(tree, number).or_else(|| by_name(tree, source))?;
        let mut devices = functions(&folder);
        devices.extend(btrfs_siblings(tree, &folder).iter().flat_map(|f| functions(f)));
        Some(Holder { what, devices })
    };
    text.lines().filter_map(mount).collect()
}

/// Parses swaps: a title, then `/dev/name kind size...`.
fn swaps(tree: &Tree) -> Vec<Holder> {
    let text = tree.text("proc/swaps").unwrap_or_default();
    let swap = |line: &str| {
        let source = line.split_whitespace().next()?;
        let devices = functions(&by_name(tree, source)?);
        let what = format!("swap space ({source})");
        Some(Holder { what, devices })
    };
    text.lines().skip(1).filter_map(swap).collect()
}

fn default_routes(tree: &Tree) -> Vec<Holder> {
    let text = |name| tree.text(name).unwrap_or_default();
    let (four, six) = (text("proc/net/route"), text("proc/net/ipv6_route"));
    let interfaces: BTreeSet<&str> = four
        .lines()
        .filter_map(default_v4)
        .chain(six.lines().filter_map(default_v6))
        .filter(|name| *name != "lo" && !name.contains('/'))
        .collect();
    let holder = |name: &str| Holder {
        what: format!("the default route (network interface {name})"),
        devices: functions(&tree.path(&format!("sys/class/net/{name}"))),
    };
    interfaces.into_iter().map(holder).collect()
}

/// Parses `interface destination gateway flags references use metric mask ...`.
fn default_v4(line: &str) -> Option<&str> {
    let fields: Vec<_> = line.split_whitespace().collect();
    let is_zero = |index: usize| fields.get(index).and_then(|field| hex(field)) == Some(0);
    (is_zero(1) && is_zero(7)).then(|| fields.first().copied()).flatten()
}

/// Parses `destination prefix source prefix next-hop metric references use flags interface`.
fn default_v6(line: &str) -> Option<&str> {
    let fields: Vec<_> = line.split_whitespace().collect();
    let destination = fields.first()?;
    let all = destination.bytes().all(|byte| byte == b'0') && hex(fields.get(1)?) == Some(0);
    all.then(|| fields.get(9).copied()).flatten()
}

/// The folder of the block device `major:minor`.
fn by_number(tree: &Tree, number: &str) -> Option<PathBuf> {
    let (major, minor) = number.split_once(':')?;
    let (major, minor): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
    let folder = tree.path(&format!("sys/dev/block/{major}:{minor}"));
    folder.exists().then_some(folder)
}

/// The folder of the block device `/dev/...`, which may be a symbolic link.
fn by_name(tree: &Tree, source: &str) -> Option<PathBuf> {
    let path = source.starts_with("/dev/").then(|| tree.path(source))?;
    let path = path.canonicalize().unwrap_or(path);
    let folder = tree.path("sys/class/block").join(path.file_name()?);
    folder.exists().then_some(folder)
}

/// The disks of the btrfs file system that has this disk.
fn btrfs_siblings(tree: &Tree, folder: &Path) -> Vec<PathBuf> {
    let name = folder.canonicalize().ok();
    let name = name.as_deref().and_then(|path| path.file_name()?.to_str());
    let disks = |id: &String| tree.names(&format!("sys/fs/btrfs/{id}/devices"));
    let all = tree.names("sys/fs/btrfs");
    let ours =
        all.iter().map(disks).filter(|disks| disks.iter().any(|disk| Some(disk.as_str()) == name));
    let folders = ours.flatten().map(|disk| tree.path(&format!("sys/class/block/{disk}")));
    folders.collect()
}

/// The PCI functions below the device with this folder, through all device layers.
fn functions(folder: &Path) -> BTreeSet<PciAddress> {
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

fn entries(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let names = names(folder).into_iter().filter(|name| name.starts_with(prefix));
    names.map(|name| folder.join(name)).collect()
}

#[cfg(test)]
mod tests;
