//! Processes that have a node of a device open, by the links in `/proc/PID/fd`. Only root sees
//! those of all users.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::libc;
use vfio_passthrough::PciAddress;

use super::super::tree::Tree;
use super::display::nvidia_node;
use super::holder::Holder;
use super::layers::by_number;
use super::storage;

/// The nodes below /dev that processes have open, each with `name (process id)`.
#[derive(Debug)]
pub(crate) struct Opened(BTreeSet<(String, String)>);

impl Opened {
    /// Reads /proc. This process does not count.
    pub(crate) fn of(tree: &Tree) -> Self {
        let own = std::process::id();
        let processes = tree.names("proc").into_iter().filter_map(|name| name.parse().ok());
        let others = processes.filter(|id: &u32| *id != own);
        Self(others.flat_map(|id| opened_by(tree, id)).collect())
    }

    /// A process that has one of `nodes` open.
    pub(crate) fn by(&self, nodes: &[String]) -> Option<&str> {
        let found = self.0.iter().find(|(node, _)| nodes.contains(node));
        found.map(|(_, process)| process.as_str())
    }

    /// The uses of `devices` by processes that have their nodes open.
    pub(crate) fn holders(&self, tree: &Tree, devices: &[PciAddress]) -> Vec<Holder> {
        let of_device = |address: &PciAddress| {
            let nodes = nodes(tree, *address);
            let ours = self.0.iter().filter(|(node, _)| nodes.contains(node));
            let holder = |(node, process): &(String, String)| {
                let what = format!("{process}, which has /{node} open");
                Holder::new(what, BTreeSet::from([*address])).ends_by(format!("fuser -v /{node}"))
            };
            ours.map(holder).collect::<Vec<_>>()
        };
        devices.iter().flat_map(of_device).collect()
    }
}

/// Nodes that a process keeps open without using the device: a sound server has the mixer of every
/// card. Keyboards and mice are reported as such.
const UNUSED: [&str; 2] = ["dev/snd/control", "dev/input/"];

/// The nodes of a device and of what is below it or stacked on it.
fn nodes(tree: &Tree, address: PciAddress) -> BTreeSet<String> {
    let folder = tree.path(&format!("sys/bus/pci/devices/{address}"));
    let mut nodes = BTreeSet::new();
    let mut left: Vec<PathBuf> = folder.canonicalize().into_iter().collect();
    while let Some(folder) = left.pop() {
        nodes.extend(node(&folder));
        left.extend(folders(&folder));
    }
    nodes.extend(storage::nodes(tree, address));
    nodes.extend(nvidia_node(tree, address));
    nodes.retain(|node| !UNUSED.iter().any(|unused| node.starts_with(unused)));
    nodes
}

/// The node that the kernel named in a folder of sysfs.
fn node(folder: &Path) -> Option<String> {
    let text = fs::read_to_string(folder.join("uevent")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("DEVNAME=")).map(|name| format!("dev/{name}"))
}

/// The folders in a folder of sysfs; its links lead elsewhere.
fn folders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.map(|entry| entry.path()).collect()
}

fn opened_by(tree: &Tree, id: u32) -> Vec<(String, String)> {
    let folder = format!("proc/{id}/fd");
    let links = tree.names(&folder).into_iter().map(|name| tree.path(&format!("{folder}/{name}")));
    let nodes: BTreeSet<_> = links.filter_map(|link| opened_node(tree, &link)).collect();
    if nodes.is_empty() {
        return Vec::new();
    }
    let name = tree.line(&format!("proc/{id}/comm")).unwrap_or_else(|| "a process".to_owned());
    nodes.into_iter().map(|node| (node, format!("{name} (process {id})"))).collect()
}

/// The node behind a link of /proc/PID/fd. The path in the link is that of the process: in a
/// container or another root it has another name, so the number of the device counts if the kernel
/// has a name for it. A file without `dev` in its path is not looked at: a server of files that
/// does not answer would block this process.
fn opened_node(tree: &Tree, link: &Path) -> Option<String> {
    let target = fs::read_link(link).ok()?;
    let (_, name) = target.to_str()?.split_once("/dev/")?;
    let by_path = format!("dev/{name}");
    match fs::metadata(link) {
        Ok(metadata) => named_by_kernel(tree, &metadata, by_path),
        Err(_) => Some(by_path),
    }
}

/// The name of a device node; `None` for another kind of file.
fn named_by_kernel(tree: &Tree, metadata: &Metadata, by_path: String) -> Option<String> {
    let kind = match metadata.file_type() {
        kind if kind.is_char_device() => "char",
        kind if kind.is_block_device() => "block",
        _ => return None,
    };
    let number = metadata.rdev();
    let number = format!("{}:{}", libc::major(number), libc::minor(number));
    Some(by_number(tree, kind, &number).and_then(|folder| node(&folder)).unwrap_or(by_path))
}
