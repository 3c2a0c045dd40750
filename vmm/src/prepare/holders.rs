//! What the host itself needs a device for: disks with mounted file systems or swap, NICs with the
//! default route.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use vfio_passthrough::PciAddress;

use super::tree::{Tree, hex, names};

/// More layers of devices than any host has below one file system.
const MOST_LAYERS: usize = 1024;

/// Something that the host would lose with the devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    /// How it is called.
    pub(crate) what: String,
    /// The devices that it is on, and the bridges above them.
    pub(crate) devices: BTreeSet<PciAddress>,
}

/// What each device is needed for.
pub(crate) fn holders(tree: &Tree) -> Vec<Holder> {
    let mut holders = mounts(tree);
    holders.extend(swaps(tree));
    holders.extend(default_routes(tree));
    holders.retain(|holder| !holder.devices.is_empty());
    holders
}

/// Lines of mountinfo: `id parent major:minor root place options... - kind source options`
/// (proc(5)).
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
        // The number of btrfs and its like is no block device's, but their source is one's name.
        let folder = by_number(tree, number).or_else(|| by_name(tree, source))?;
        let mut devices = functions(&folder);
        devices.extend(btrfs_siblings(tree, &folder).iter().flat_map(|f| functions(f)));
        Some(Holder { what, devices })
    };
    text.lines().filter_map(mount).collect()
}

/// Lines of swaps: `/dev/name kind size...`, below a title.
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

/// `interface destination gateway flags references use metric mask ...`
fn default_v4(line: &str) -> Option<&str> {
    let fields: Vec<_> = line.split_whitespace().collect();
    let is_zero = |index: usize| fields.get(index).and_then(|field| hex(field)) == Some(0);
    (is_zero(1) && is_zero(7)).then(|| fields.first().copied()).flatten()
}

/// `destination prefix source prefix next-hop metric references use flags interface`
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

/// The folder of the block device `/dev/...`, which may be a link.
fn by_name(tree: &Tree, source: &str) -> Option<PathBuf> {
    let path = source.starts_with("/dev/").then(|| tree.path(source))?;
    let path = path.canonicalize().unwrap_or(path);
    let folder = tree.path("sys/class/block").join(path.file_name()?);
    folder.exists().then_some(folder)
}

/// The other disks of the btrfs that has this one.
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

/// The PCI functions that the device with this folder is on, through all that it is made of.
fn functions(folder: &Path) -> BTreeSet<PciAddress> {
    let (mut seen, mut found) = (BTreeSet::new(), BTreeSet::new());
    let mut left = vec![folder.to_owned()];
    while let Some(folder) = left.pop() {
        // A loop of links does not resolve, and one of layers is seen.
        let Ok(folder) = folder.canonicalize() else {
            continue;
        };
        if seen.len() >= MOST_LAYERS || !seen.insert(folder.clone()) {
            continue;
        }
        // All above it count: a VMD has NVMes of another PCI domain below it.
        found.extend(folder.iter().filter_map(|name| name.to_str()?.parse::<PciAddress>().ok()));
        left.extend(lower(&folder));
    }
    found
}

/// What a device is made of: the disks of a device mapper's or an array's (a partition's are those
/// of the whole), the interfaces below a bridge, a bond or a VLAN, the controllers of an NVMe with
/// several paths.
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
