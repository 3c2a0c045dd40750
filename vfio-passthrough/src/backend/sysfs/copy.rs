//! Copies what the assignment of a device reads from sysfs, for a process that may open no file.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::source::{DEVICES, Entry, GROUPS, Source};
use super::tree::Sysfs;
use crate::address::PciAddress;

impl Sysfs {
    /// A view of a copy ([`copy`](Self::copy)): for a process that may open no file.
    pub fn of_copy(entries: impl IntoIterator<Item = (PathBuf, Entry)>) -> Self {
        Self { source: Source::Copy(Arc::new(entries.into_iter().collect())) }
    }

    /// The devices of a copy; `None` for `/sys` itself.
    pub(crate) fn copied(&self) -> Option<Vec<PciAddress>> {
        let Source::Copy(entries) = &self.source else { return None };
        let names = entries.keys().filter_map(|path| path.strip_prefix(DEVICES).ok()?.to_str());
        // The paths below a device's are no addresses.
        Some(names.filter_map(|name| name.parse().ok()).collect())
    }

    /// Copies what the assignment of a device reads, by its open node or that of its group, if
    /// there is one. The paths are relative to `/sys`.
    ///
    /// The copy has the device, its physical function, the other devices of its group, whose drivers
    /// decide whether the group is viable, and the devices on its bus, which a reset of the bus
    /// resets.
    pub fn copy(&self, address: PciAddress, node: Option<&File>) -> BTreeMap<PathBuf, Entry> {
        let mut copy = Copy { sysfs: self, entries: BTreeMap::new() };
        let on_bus =
            self.source.names(Path::new(DEVICES)).into_iter().filter_map(|name| name.parse().ok());
        let on_bus = on_bus.filter(|other: &PciAddress| other.is_same_bus(address));
        let group = self.group(address);
        let members = group.map(|group| self.members(group)).unwrap_or_default();
        let physical = self.physical_function(address);
        let devices = on_bus.chain(members).chain(physical).chain([address]);
        devices.for_each(|device| copy.device(device));
        group.into_iter().for_each(|group| copy.group(group));
        node.and_then(|file| self.number_of(file)).into_iter().for_each(|path| copy.link(path));
        copy.entries
    }
}

/// A copy in the making.
struct Copy<'a> {
    sysfs: &'a Sysfs,
    entries: BTreeMap<PathBuf, Entry>,
}

impl Copy<'_> {
    fn device(&mut self, address: PciAddress) {
        let folder = Path::new(DEVICES).join(address.to_string());
        if !self.sysfs.source.exists(&folder) {
            return;
        }
        // It is a link into the tree of buses, by which the bridge above is found.
        self.entries.insert(folder.clone(), Entry::Folder(Vec::new()));
        self.link(folder.clone());
        ["driver", "iommu_group", "physfn"].iter().for_each(|name| self.link(folder.join(name)));
        self.file(folder.join("modalias"));
        let nodes = folder.join("vfio-dev");
        for node in self.folder(nodes.clone()) {
            self.file(nodes.join(node).join("dev"));
        }
    }

    fn group(&mut self, number: u32) {
        let folder = Path::new(GROUPS).join(number.to_string());
        self.folder(folder.join("devices"));
        self.file(folder.join("reserved_regions"));
    }

    fn link(&mut self, path: PathBuf) {
        if let Ok(target) = self.sysfs.source.link(&path) {
            self.entries.insert(path, Entry::Link(target));
        }
    }

    fn file(&mut self, path: PathBuf) {
        if let Some(text) = self.sysfs.source.text(&path) {
            self.entries.insert(path, Entry::File(text));
        }
    }

    fn folder(&mut self, path: PathBuf) -> Vec<String> {
        if !self.sysfs.source.exists(&path) {
            return Vec::new();
        }
        let names = self.sysfs.source.names(&path);
        self.entries.insert(path, Entry::Folder(names.clone()));
        names
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn address(text: &str) -> PciAddress {
        text.parse().unwrap()
    }

    /// Two functions of one device in group 7, of which the second is bound to a driver of the host,
    /// and a device of another group on the same bus.
    fn tree() -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        let root = tree.path();
        let members = root.join(GROUPS).join("7/devices");
        fs::create_dir_all(&members).unwrap();
        fs::write(root.join(GROUPS).join("7/reserved_regions"), "0xfee00000 0xfeefffff msi\n")
            .unwrap();
        let devices = [
            ("0000:01:00.0", "vfio-pci", 7),
            ("0000:01:00.1", "snd_hda_intel", 7),
            ("0000:01:01.0", "vfio-pci", 8),
            ("0000:02:00.0", "vfio-pci", 9),
        ];
        for (name, driver, group) in devices {
            let folder = root.join(DEVICES).join(name);
            fs::create_dir_all(folder.join("vfio-dev/vfio3")).unwrap();
            fs::write(folder.join("vfio-dev/vfio3/dev"), "1:3\n").unwrap();
            symlink(format!("../drivers/{driver}"), folder.join("driver")).unwrap();
            symlink(format!("../../{group}"), folder.join("iommu_group")).unwrap();
            fs::write(folder.join("modalias"), "pci:v00008086d00001234sv0\n").unwrap();
            if group == 7 {
                symlink(&folder, members.join(name)).unwrap();
            }
        }
        fs::create_dir_all(root.join("dev/char")).unwrap();
        symlink("../../devices/virtual/vfio/7", root.join("dev/char/1:3")).unwrap();
        tree
    }

    #[test]
    fn a_copy_answers_what_the_tree_answers() {
        let tree = tree();
        let own = Sysfs::at(tree.path());
        let null = File::open("/dev/null").unwrap();
        let copied = Sysfs::of_copy(own.copy(address("01:00.0"), Some(&null)));
        let answers = |sysfs: &Sysfs| {
            let each = ["01:00.0", "01:00.1", "01:01.0"].map(address).map(|address| {
                (
                    sysfs.ready_group(address).map_err(|error| error.to_string()),
                    sysfs.identity(address).map(|identity| identity.device),
                    (sysfs.driver(address), sysfs.is_vfio(address), sysfs.group(address)),
                    (sysfs.cdev(address), sysfs.is_cdev_of(&null, address)),
                )
            });
            (each, sysfs.members(7), sysfs.reserved_regions(7), sysfs.group_of(&null))
        };
        assert_eq!(answers(&copied), answers(&own));
        assert_eq!(copied.group_of(&null), Some(7));
        assert_eq!(copied.group(address("01:01.0")), Some(8), "it is on the same bus");
    }

    #[test]
    fn a_copy_has_nothing_else() {
        let tree = tree();
        let copied = Sysfs::of_copy(Sysfs::at(tree.path()).copy(address("01:00.0"), None));
        let other = address("02:00.0");
        assert!(copied.ready_group(other).is_err() && copied.identity(other).is_none());
        assert_eq!(copied.members(9), []);
        let devices = ["01:00.0", "01:00.1", "01:01.0"].map(address);
        assert_eq!(copied.copied(), Some(devices.to_vec()));
        assert_eq!(Sysfs::at(tree.path()).copied(), None);
        assert!(Sysfs::at(tree.path()).copy(address("09:00.0"), None).is_empty());
    }
}
