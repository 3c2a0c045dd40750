//! Where sysfs is read: a tree of files, or a copy of some of them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The size of a file in bytes at most; one read returns all of it
/// (Documentation/filesystems/sysfs.rst).
const PAGE: usize = 4096;
/// The folder of all PCI devices.
pub(super) const DEVICES: &str = "bus/pci/devices";
/// The folder of all groups.
pub(super) const GROUPS: &str = "kernel/iommu_groups";

/// An entry of a copy of sysfs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The text of a file.
    File(String),
    /// The target of a symbolic link.
    Link(PathBuf),
    /// The names of a folder's entries.
    Folder(Vec<String>),
}

#[derive(Clone, Debug)]
pub(super) enum Source {
    Tree(PathBuf),
    Copy(Arc<BTreeMap<PathBuf, Entry>>),
}

/// Paths are relative to the root.
impl Source {
    pub fn exists(&self, path: &Path) -> bool {
        match self {
            Self::Tree(root) => root.join(path).exists(),
            Self::Copy(entries) => entries.contains_key(path),
        }
    }

    pub fn link(&self, path: &Path) -> io::Result<PathBuf> {
        match self {
            Self::Tree(root) => fs::read_link(root.join(path)),
            Self::Copy(entries) => match entries.get(path) {
                Some(Entry::Link(target)) => Ok(target.clone()),
                _ => Err(io::ErrorKind::NotFound.into()),
            },
        }
    }

    /// The text of a file. It is `None` if the file cannot be read.
    pub fn text(&self, path: &Path) -> Option<String> {
        match self {
            Self::Tree(root) => {
                let mut page = [0; PAGE];
                let file = File::open(root.join(path));
                let length = file.and_then(|mut file| file.read(&mut page)).ok()?;
                Some(String::from_utf8_lossy(page.get(..length)?).into_owned())
            }
            Self::Copy(entries) => match entries.get(path) {
                Some(Entry::File(text)) => Some(text.clone()),
                _ => None,
            },
        }
    }

    /// The names of a folder's entries, in order; none if it cannot be read.
    pub fn names(&self, path: &Path) -> Vec<String> {
        let mut names = match self {
            Self::Tree(root) => {
                let entries = fs::read_dir(root.join(path)).into_iter().flatten().flatten();
                entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
            }
            Self::Copy(entries) => match entries.get(path) {
                Some(Entry::Folder(names)) => names.clone(),
                _ => Vec::new(),
            },
        };
        names.sort();
        names
    }
}
