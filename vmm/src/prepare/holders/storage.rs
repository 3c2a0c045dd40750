//! Uses of disks: mounts, swap, and what is stacked on a disk or exported from it.

use std::path::{Path, PathBuf};

use vfio_passthrough::PciAddress;

use super::super::tree::Tree;
use super::holder::Holder;
use super::layers::{block_by_name, by_number, functions, functions_of};

/// All uses of disks.
pub(super) fn holders(tree: &Tree) -> Vec<Holder> {
    let mut holders = mounts(tree);
    holders.extend(swaps(tree));
    holders.extend(tree.names(BLOCK).iter().filter_map(|name| stacked(tree, name)));
    holders.extend(exports(tree));
    holders
}

const BLOCK: &str = "sys/class/block";

/// Parses mountinfo: `id parent major:minor root place options... - kind source options` (proc(5)).
fn mounts(tree: &Tree) -> Vec<Holder> {
    let text = tree.text("proc/self/mountinfo").unwrap_or_default();
    text.lines().filter_map(|line| mount(tree, line)).collect()
}

fn mount(tree: &Tree, line: &str) -> Option<Holder> {
    let (front, back) = line.split_once(" - ")?;
    let number = front.split(' ').nth(2)?;
    let place = front.split(' ').nth(4)?;
    let source = back.split(' ').nth(1)?;
    // btrfs and others have a number without a block device; their source names one.
    let folder = by_number(tree, "block", number).or_else(|| block_by_name(tree, source))?;
    let mut devices = functions(&folder);
    devices.extend(btrfs_siblings(tree, &folder).iter().flat_map(|f| functions(f)));
    Some(match place {
        "/" => Holder::new(format!("the root file system ({source})"), devices),
        _ => Holder::new(format!("the file system on {place} ({source})"), devices)
            .ends_by(format!("umount {place}")),
    })
}

/// Parses swaps: a title, then `/dev/name kind size...`.
fn swaps(tree: &Tree) -> Vec<Holder> {
    let text = tree.text("proc/swaps").unwrap_or_default();
    let swap = |line: &str| {
        let source = line.split_whitespace().next()?;
        let devices = functions(&block_by_name(tree, source)?);
        let swap = Holder::new(format!("swap space ({source})"), devices);
        Some(swap.ends_by(format!("swapoff {source}")))
    };
    text.lines().skip(1).filter_map(swap).collect()
}

/// The disks of the btrfs file system that has this disk.
fn btrfs_siblings(tree: &Tree, folder: &Path) -> Vec<PathBuf> {
    let name = folder.canonicalize().ok();
    let name = name.as_deref().and_then(|path| path.file_name()?.to_str());
    let disks = |id: &String| tree.names(&format!("sys/fs/btrfs/{id}/devices"));
    let all = tree.names("sys/fs/btrfs");
    let ours =
        all.iter().map(disks).filter(|disks| disks.iter().any(|disk| Some(disk.as_str()) == name));
    let folders = ours.flatten().map(|disk| tree.path(&format!("{BLOCK}/{disk}")));
    folders.collect()
}

/// A block device that is made of others, whether or not it is mounted: a volume of the device
/// mapper (LVM, LUKS, multipath), an array, bcache, a loop device.
fn stacked(tree: &Tree, name: &str) -> Option<Holder> {
    let folder = format!("{BLOCK}/{name}");
    let line = |attribute: &str| tree.line(&format!("{folder}/{attribute}"));
    if let Some(backing) = line("loop/backing_file") {
        let devices = functions(&block_by_name(tree, &backing)?);
        let what = format!("the loop device {name} on {backing}");
        return Some(Holder::new(what, devices).ends_by(format!("losetup -d /dev/{name}")));
    }
    // A cache set has this folder in its own disks, which are no lower layers of bcache0.
    let in_cache = tree.path(&format!("{folder}/bcache")).exists();
    let is_stacked = !tree.names(&format!("{folder}/slaves")).is_empty();
    let devices = functions_of(tree, BLOCK, name);
    let (what, remedy) = match line("dm/name") {
        Some(volume) => {
            let remedy = format!("dmsetup remove {volume}");
            (format!("the {} {volume} ({name})", kind_of_volume(line("dm/uuid"))), remedy)
        }
        None if in_cache => {
            (format!("bcache ({name})"), format!("echo 1 > /sys/class/block/{name}/bcache/stop"))
        }
        None if is_stacked => (format!("the array {name}"), format!("mdadm --stop /dev/{name}")),
        None => return None,
    };
    Some(Holder::new(what, devices).ends_by(remedy))
}

/// The kind of a device mapper's volume, by the prefix that its owner gives to the UUID.
fn kind_of_volume(uuid: Option<String>) -> &'static str {
    match uuid.as_deref().and_then(|uuid| uuid.split('-').next()) {
        Some("LVM") => "LVM volume",
        Some("CRYPT") => "encrypted volume",
        Some("mpath") => "multipath device",
        _ => "device-mapper volume",
    }
}

const NVMET: &str = "sys/kernel/config/nvmet/subsystems";

/// Disks that this host exports as an NVMe target. Other targets open a disk exclusively.
fn exports(tree: &Tree) -> Vec<Holder> {
    let of_subsystem = |subsystem: &String| {
        let folder = format!("{NVMET}/{subsystem}/namespaces");
        let names = tree.names(&folder);
        names.into_iter().map(move |name| format!("{folder}/{name}"))
    };
    let export = |folder: String| {
        let path = tree.line(&format!("{folder}/device_path"))?;
        let devices = functions(&block_by_name(tree, &path)?);
        let is_on = tree.line(&format!("{folder}/enable")).as_deref() == Some("1");
        let export = Holder::new(format!("the NVMe target of {path}"), devices);
        is_on.then(|| export.ends_by(format!("echo 0 > /{folder}/enable")))
    };
    tree.names(NVMET).iter().flat_map(of_subsystem).filter_map(export).collect()
}

/// The block devices above a function, as paths: disks, partitions and what is stacked on them.
pub(super) fn nodes(tree: &Tree, address: PciAddress) -> Vec<String> {
    let names = tree.names(BLOCK).into_iter();
    let ours = names.filter(|name| functions_of(tree, BLOCK, name).contains(&address));
    // The kernel names a node `cciss!c0d0` in sysfs where /dev has `cciss/c0d0`.
    ours.map(|name| format!("dev/{}", name.replace('!', "/"))).collect()
}

/// The use of a block device that something has open exclusively.
pub(super) fn claimed(tree: &Tree, node: &str, address: PciAddress) -> Holder {
    let pools = tree.names("proc/spl/kstat/zfs").into_iter();
    let pools: Vec<_> = pools
        .filter(|name| tree.path(&format!("proc/spl/kstat/zfs/{name}/state")).exists())
        .collect();
    let owner = match pools.is_empty() {
        true => "a file system of a container, or a target".to_owned(),
        false => format!("perhaps the ZFS pool {}", pools.join(" or ")),
    };
    let what = format!("an exclusive use of /{node} ({owner})");
    Holder::new(what, [address].into())
}
