//! Which paths of the program belong to the machine.

use std::path::{Path, PathBuf};

/// Paths below these are in the folder of the machine.
const PREFIXES: [&str; 9] = [
    "/dev/iommu",
    "/dev/vfio",
    "/sys/bus/pci",
    "/sys/class/iommu",
    "/sys/class/vfio",
    "/sys/class/vfio-dev",
    "/sys/devices/pci0000:00",
    "/sys/kernel/iommu_groups",
    "/sys/kernel/debug/iommu",
];

/// A device node of VFIO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    /// `/dev/vfio/vfio`
    Container,
    /// `/dev/vfio/N`
    Group(u32),
    /// `/dev/iommu`
    Iommufd,
    /// `/dev/vfio/devices/vfioN`
    Device(usize),
}

/// The major number of groups and of character devices of devices. Linux chooses them when it
/// starts.
const GROUPS: u32 = 510;
const DEVICES: u32 = 511;

impl Node {
    /// The number of the node (`st_rdev`). Containers and iommufds are misc devices
    /// (include/linux/miscdevice.h).
    pub fn number(self) -> u64 {
        match self {
            Self::Container => libc::makedev(10, 196),
            Self::Group(group) => libc::makedev(GROUPS, group),
            Self::Iommufd => libc::makedev(10, 126),
            Self::Device(number) => libc::makedev(DEVICES, u32::try_from(number).unwrap_or(0)),
        }
    }

    /// The node of a path.
    pub fn of(path: &Path) -> Option<Self> {
        let path = path.to_str()?;
        match path.strip_prefix("/dev/")? {
            "vfio/vfio" => Some(Self::Container),
            "iommu" => Some(Self::Iommufd),
            node => match node.strip_prefix("vfio/")?.strip_prefix("devices/vfio") {
                Some(number) => number.parse().ok().map(Self::Device),
                None => node.strip_prefix("vfio/")?.parse().ok().map(Self::Group),
            },
        }
    }
}

/// The place in the folder `root` of a path that belongs to the machine.
pub fn inside(root: &Path, path: &Path) -> Option<PathBuf> {
    let belongs = PREFIXES.iter().any(|prefix| path.starts_with(prefix));
    belongs.then(|| root.join(path.strip_prefix("/").unwrap_or(path)))
}

/// The path as the program knows it, of a path in the folder `root`.
pub fn outside(root: &Path, path: &Path) -> PathBuf {
    path.strip_prefix(root).map_or_else(|_| path.to_owned(), |path| Path::new("/").join(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_have_kinds() {
        let node = |path| Node::of(Path::new(path));
        assert_eq!(node("/dev/vfio/vfio"), Some(Node::Container));
        assert_eq!(node("/dev/vfio/12"), Some(Node::Group(12)));
        assert_eq!(node("/dev/iommu"), Some(Node::Iommufd));
        assert_eq!(node("/dev/vfio/devices/vfio3"), Some(Node::Device(3)));
        for other in ["/dev/vfio", "/dev/vfio/devices", "/dev/null", "/tmp/vfio/12", "12"] {
            assert_eq!(node(other), None, "{other}");
        }
    }

    #[test]
    fn only_the_machines_paths_are_in_its_folder() {
        let root = Path::new("/tmp/machine");
        let inside = |path| inside(root, Path::new(path));
        let devices = "/sys/bus/pci/devices";
        assert_eq!(inside(devices), Some("/tmp/machine/sys/bus/pci/devices".into()));
        assert_eq!(outside(root, &inside(devices).unwrap()), Path::new(devices));
        for other in ["/sys/bus/pci_express", "/dev/null", "/etc/passwd", "sys/bus/pci"] {
            assert_eq!(inside(other), None, "{other}");
        }
    }
}
