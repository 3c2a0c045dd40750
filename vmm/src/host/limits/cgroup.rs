//! The limits of the process's control group and of the groups above it
//! (Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst).

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::config::HugePages;

/// What a control group limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Controller {
    /// Memory, at which the kernel kills a process of the group.
    Memory,
    /// Memory, at which the kernel makes the processes of the group wait. Version 2 only.
    MemoryHigh,
    /// Huge pages of one size.
    HugePages(HugePages),
    /// Threads.
    Threads,
}

/// A limit of one control group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    /// The file that sets it.
    pub(crate) file: PathBuf,
    pub(crate) most: u64,
    /// How much of it is in use, without what the kernel frees when it is needed.
    pub(crate) used: u64,
}

impl Limit {
    /// How much is left.
    pub(crate) fn free(&self) -> u64 {
        self.most.saturating_sub(self.used)
    }
}

/// The control groups of a process.
pub(crate) struct Cgroups {
    /// The folder of `/proc` and `/sys`.
    root: PathBuf,
    /// The process's file `cgroup` in `/proc`.
    memberships: String,
}

/// The groups of one controller, from the process's own group to the highest one.
struct Groups {
    folders: Vec<PathBuf>,
    is_v1: bool,
}

impl Cgroups {
    /// The groups of this process. A host without control groups has no limits.
    pub(crate) fn of(root: &Path) -> Self {
        Self::of_process(root, "self")
    }

    /// The groups of a process, by its folder in `/proc`.
    pub(super) fn of_process(root: &Path, process: &str) -> Self {
        let file = root.join("proc").join(process).join("cgroup");
        Self { root: root.to_owned(), memberships: read(&file).unwrap_or_default() }
    }

    /// The first limit, from the process's own group upwards, that has less than `needed` left.
    pub(crate) fn lacking(&self, controller: Controller, needed: u64) -> Option<Limit> {
        let groups = groups(&self.root, &self.memberships, controller)?;
        let short = |folder: &PathBuf| limit(folder, groups.is_v1, controller, needed);
        groups.folders.iter().find_map(short)
    }

    /// The path of a file as a user has it.
    pub(crate) fn shown(&self, file: &Path) -> String {
        let below = file.strip_prefix(&self.root).unwrap_or(file);
        Path::new("/").join(below).display().to_string()
    }
}

/// The groups of a controller. `memberships` is `/proc/self/cgroup`: a line `ID:CONTROLLERS:PATH`
/// for each hierarchy; version 2 has the ID 0 and no controllers (cgroups(7)).
fn groups(root: &Path, memberships: &str, controller: Controller) -> Option<Groups> {
    let name = match controller {
        Controller::Memory | Controller::MemoryHigh => "memory",
        Controller::HugePages(_) => "hugetlb",
        Controller::Threads => "pids",
    };
    let fields = |line: &'_ str| -> Option<(String, String)> {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        Some((controllers.to_owned(), path.to_owned()))
    };
    let lines: Vec<_> = memberships.lines().filter_map(fields).collect();
    let v1 = lines.iter().find(|(controllers, _)| controllers.split(',').any(|own| own == name));
    let v2 = lines.iter().find(|(controllers, _)| controllers.is_empty());
    let (_, path) = v1.or(v2)?;
    let mount = root.join("sys/fs/cgroup");
    let mount = if v1.is_some() { mount.join(name) } else { mount };
    // A path that leaves the namespace's root begins with "/..". Those groups cannot be seen.
    let seen = Path::new(path.trim_start_matches('/'));
    let seen = if path.contains("/..") { Path::new("") } else { seen };
    let folders = seen.ancestors().map(|below| mount.join(below)).collect();
    Some(Groups { folders, is_v1: v1.is_some() })
}

fn limit(folder: &Path, is_v1: bool, controller: Controller, needed: u64) -> Option<Limit> {
    let (most, used) = names(controller, is_v1)?;
    let file = folder.join(most);
    // "max" is no number. The root group has no such file.
    let most = number(&read(&file)?)?;
    let used = read(&folder.join(used)).and_then(|text| number(&text)).unwrap_or(0);
    let limit = Limit { file, most, used };
    if limit.free() >= needed {
        return None;
    }
    let freed = match controller {
        Controller::Memory | Controller::MemoryHigh => cached(folder, is_v1),
        Controller::HugePages(_) | Controller::Threads => 0,
    };
    let limit = Limit { used: used.saturating_sub(freed), ..limit };
    (limit.free() < needed).then_some(limit)
}

/// The files of a limit and of what is used of it.
fn names(controller: Controller, is_v1: bool) -> Option<(String, String)> {
    let names = |most: &str, used: &str| Some((most.to_owned(), used.to_owned()));
    match (controller, is_v1) {
        (Controller::Memory, false) => names("memory.max", "memory.current"),
        (Controller::Memory, true) => names("memory.limit_in_bytes", "memory.usage_in_bytes"),
        (Controller::MemoryHigh, false) => names("memory.high", "memory.current"),
        (Controller::MemoryHigh, true) => None,
        (Controller::Threads, _) => names("pids.max", "pids.current"),
        (Controller::HugePages(page), _) => {
            let size = match page {
                HugePages::Size2M => "2MB",
                HugePages::Size1G => "1GB",
            };
            let (most, used) =
                if is_v1 { ("limit_in_bytes", "usage_in_bytes") } else { ("max", "current") };
            names(&format!("hugetlb.{size}.{most}"), &format!("hugetlb.{size}.{used}"))
        }
    }
}

/// The bytes of files in the page cache of a group and the groups below it. The kernel frees them
/// before it kills; it cannot free shared memory.
fn cached(folder: &Path, is_v1: bool) -> u64 {
    let stat = read(&folder.join("memory.stat")).unwrap_or_default();
    let value = |name: &str| {
        let mut lines = stat.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(own, _)| *own == name).and_then(|(_, value)| number(value)).unwrap_or(0)
    };
    let names = if is_v1 { ("total_cache", "total_shmem") } else { ("file", "shmem") };
    value(names.0).saturating_sub(value(names.1))
}

fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// Reads a file by one call. These files are shorter than a page, or what matters comes first.
pub(super) fn read(path: &Path) -> Option<String> {
    let mut buffer = [0; 4096];
    let length = File::open(path).and_then(|mut file| file.read(&mut buffer)).ok()?;
    Some(String::from_utf8_lossy(buffer.get(..length)?).into_owned())
}

#[cfg(test)]
mod tests;
