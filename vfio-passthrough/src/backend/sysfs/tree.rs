//! Reads the drivers and groups of devices from sysfs. The root is a parameter, so that tests run
//! on fixture trees.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::source::{DEVICES, GROUPS, Source};
use crate::address::PciAddress;
use crate::pci::presence::Identity;

/// A view of `/sys`.
#[derive(Clone, Debug)]
pub struct Sysfs {
    pub(super) source: Source,
}

/// An error that keeps a device from being assigned.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such device.
    #[error("{address}: there is no such PCI device; 'lspci -D' lists the PCI devices")]
    NoDevice {
        /// The requested address.
        address: PciAddress,
    },
    /// The IOMMU does not cover the device.
    #[error(
        "{address}: the device is in no IOMMU group: no IOMMU covers it; turn on VT-d or AMD-Vi in \
         the firmware and boot the host with 'intel_iommu=on' (Intel)"
    )]
    NoGroup {
        /// The device.
        address: PciAddress,
    },
    /// The device is bound to a driver other than vfio-pci, or to none.
    #[error(
        "{address}: the device is bound to {}; give it to vfio-pci: {}",
        driver_name(driver),
        bind_commands(*address, driver.is_some())
    )]
    NotBound {
        /// The device.
        address: PciAddress,
        /// Its driver, if any.
        driver: Option<String>,
    },
    /// Other devices of the group are in use by the host.
    #[error("{address}: IOMMU group {group} is not viable: {}", offenders(others))]
    NotViable {
        /// The device.
        address: PciAddress,
        /// Its group.
        group: u32,
        /// The members that are bound to a driver of the host, each with the driver's name.
        others: Vec<(PciAddress, String)>,
    },
    /// sysfs could not be read.
    #[error("{address}: cannot read {path}: {source}")]
    Read {
        /// The device.
        address: PciAddress,
        /// The path.
        path: PathBuf,
        /// The errno of `readlink`.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn kind(&self) -> io::ErrorKind {
        match self {
            Self::NoDevice { .. } => io::ErrorKind::NotFound,
            Self::NoGroup { .. } | Self::NotBound { .. } => io::ErrorKind::Unsupported,
            Self::NotViable { .. } => io::ErrorKind::ResourceBusy,
            Self::Read { source, .. } => source.kind(),
        }
    }
}

/// Keeps the error, and the kind of its errno if it has one.
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::new(error.kind(), error)
    }
}

fn driver_name(driver: &Option<String>) -> &str {
    driver.as_deref().unwrap_or("no driver")
}

fn offenders(others: &[(PciAddress, String)]) -> String {
    let each = |(address, driver): &(PciAddress, String)| {
        format!(
            "{address} is bound to {driver}; give it to vfio-pci: {}",
            bind_commands(*address, true)
        )
    };
    match others {
        [] => "the kernel does not report the reason".to_owned(),
        _ => others.iter().map(each).collect::<Vec<_>>().join("; "),
    }
}

/// The shell commands that give a device to vfio-pci, as root.
fn bind_commands(address: PciAddress, bound: bool) -> String {
    let device = format!("/sys/bus/pci/devices/{address}");
    let unbind =
        if bound { format!("echo {address} > {device}/driver/unbind; ") } else { String::new() };
    format!(
        "modprobe vfio-pci; {unbind}echo vfio-pci > {device}/driver_override; \
         echo {address} > /sys/bus/pci/drivers_probe"
    )
}

impl Default for Sysfs {
    fn default() -> Self {
        Self::at("/sys")
    }
}

impl Sysfs {
    /// Reads a tree that looks like `/sys`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { source: Source::Tree(root.into()) }
    }

    /// Whether there is such a device.
    pub fn has_device(&self, address: PciAddress) -> bool {
        self.source.exists(&device(address))
    }

    /// Whether the folder of a device has an entry.
    pub fn device_has(&self, address: PciAddress, name: &str) -> bool {
        self.source.exists(&device(address).join(name))
    }

    /// The IOMMU group of a device that is bound to a driver of VFIO.
    ///
    /// # Errors
    ///
    /// See [`Error`]: each variant is a reason why the device cannot be assigned.
    pub fn ready_group(&self, address: PciAddress) -> Result<u32, Error> {
        let driver = self.link_name(address, "driver")?;
        if driver.is_none() && !self.has_device(address) {
            return Err(Error::NoDevice { address });
        }
        if !self.is_vfio_by(address, driver.as_deref()) {
            return Err(Error::NotBound { address, driver });
        }
        let group = self.link_name(address, "iommu_group")?.and_then(|name| name.parse().ok());
        group.ok_or(Error::NoGroup { address })
    }

    /// The IDs that the kernel recorded when it found the device. It is `None` if sysfs cannot be
    /// read.
    pub fn identity(&self, address: PciAddress) -> Option<Identity> {
        // One file has both: `pci:v00001B36d00000010sv...` (modalias_show).
        let alias = self.source.text(&device(address).join("modalias"))?;
        let (vendor, rest) = alias.strip_prefix("pci:v")?.split_at_checked(8)?;
        let (device, _) = rest.strip_prefix('d')?.split_at_checked(8)?;
        let number = |digits| u32::from_str_radix(digits, 16).ok()?.try_into().ok();
        Some(Identity { vendor: number(vendor)?, device: number(device)? })
    }

    /// The driver of a device. It is `None` also if sysfs cannot be read.
    pub fn driver(&self, address: PciAddress) -> Option<String> {
        self.link_name(address, "driver").ok().flatten()
    }

    /// The device is bound to a driver of VFIO.
    pub fn is_vfio(&self, address: PciAddress) -> bool {
        self.is_vfio_by(address, self.driver(address).as_deref())
    }

    fn is_vfio_by(&self, address: PciAddress, driver: Option<&str>) -> bool {
        // vfio-pci and its variants (mlx5_vfio_pci, ...) make this folder since Linux 6.1.
        driver.is_some_and(is_vfio_driver) || self.device_has(address, "vfio-dev")
    }

    /// The physical function of a virtual function (SR-IOV, PCIe 9.1). It is `None` for other
    /// functions, and also if sysfs cannot be read.
    pub fn physical_function(&self, address: PciAddress) -> Option<PciAddress> {
        self.link_name(address, "physfn").ok().flatten()?.parse().ok()
    }

    /// The bridge above a device; `None` on a root bus. It is that of the physical function for a
    /// virtual function (pci_upstream_bridge).
    pub fn upstream_bridge(&self, address: PciAddress) -> Option<PciAddress> {
        let target = self.source.link(&device(address)).ok()?;
        target.parent().and_then(last_component)?.parse().ok()
    }

    /// The physical function whose VF token opens a virtual function: one that is on vfio-pci
    /// itself, which made the virtual function (`enable_sriov`). vfio-pci does not take a physical
    /// function that has virtual functions of another driver (vfio_pci_core_register_device).
    pub fn vf_token_of(&self, address: PciAddress) -> Option<PciAddress> {
        self.physical_function(address).filter(|physical| self.is_vfio(*physical))
    }

    /// The IOMMU group of a device. It is `None` also if sysfs cannot be read.
    pub fn group(&self, address: PciAddress) -> Option<u32> {
        self.link_name(address, "iommu_group").ok().flatten()?.parse().ok()
    }

    /// VFIO is loaded and has no groups: a kernel without CONFIG_VFIO_GROUP has device nodes
    /// (`/dev/vfio/devices`) and no group nodes. The class `vfio` is that of groups
    /// (vfio_group_init), `vfio-dev` that of devices (vfio_init).
    pub fn lacks_groups(&self) -> bool {
        let has = |class: &str| self.source.exists(&Path::new("class").join(class));
        has("vfio-dev") && !has("vfio")
    }

    /// The IOMMU group whose node is open as `file`. It is `None` also if sysfs cannot be read.
    pub fn group_of(&self, file: &File) -> Option<u32> {
        // A group's link is like ../../devices/virtual/vfio/7. The container's is in `misc`.
        let target = self.source.link(&self.number_of(file)?).ok()?;
        let is_group = target.parent().and_then(last_component).as_deref() == Some("vfio");
        last_component(&target).filter(|_| is_group)?.parse().ok()
    }

    /// The link of a device node that is open as `file`.
    pub(super) fn number_of(&self, file: &File) -> Option<PathBuf> {
        Some(Path::new("dev/char").join(number(file)?))
    }

    /// The node of a device, `/dev/vfio/devices/vfioN`. It is `None` also if sysfs cannot be read.
    pub fn cdev(&self, address: PciAddress) -> Option<PathBuf> {
        let folder = device(address).join("vfio-dev");
        // Without CONFIG_VFIO_DEVICE_CDEV the folder has no device number.
        let has_number = |name: &String| self.source.exists(&folder.join(name).join("dev"));
        let name = self.source.names(&folder).into_iter().find(has_number)?;
        Some(Path::new("/dev/vfio/devices").join(name))
    }

    /// Whether `file` is the device's node, which is open.
    pub fn is_cdev_of(&self, file: &File, address: PciAddress) -> bool {
        let folder = device(address).join("vfio-dev");
        let read = |name: String| self.source.text(&folder.join(name).join("dev"));
        let mut numbers = self.source.names(&folder).into_iter().filter_map(read);
        number(file).is_some_and(|own| numbers.any(|number| number.trim() == own))
    }

    /// The members of a group whose drivers make the group not viable, in order.
    pub fn offenders(&self, group: u32) -> Vec<(PciAddress, String)> {
        let driver = |member| Some((member, self.driver(member)?));
        let bound = self.members(group).into_iter().filter_map(driver);
        bound.filter(|(member, driver)| does_host_dma(driver) && !self.is_vfio(*member)).collect()
    }

    /// The PCI devices of a group, in order.
    pub fn members(&self, group: u32) -> Vec<PciAddress> {
        let names = self.source.names(&Path::new(GROUPS).join(group.to_string()).join("devices"));
        let mut members: Vec<_> = names.iter().filter_map(|name| name.parse().ok()).collect();
        members.sort();
        members
    }

    /// The error for a group that the kernel reports as not viable.
    pub fn not_viable(&self, address: PciAddress, group: u32) -> Error {
        let others = self.offenders(group);
        Error::NotViable { address, group, others }
    }

    /// The last component of a link in the folder of a device, or `None` if there is no such link.
    fn link_name(&self, address: PciAddress, link: &str) -> Result<Option<String>, Error> {
        let path = device(address).join(link);
        match self.source.link(&path) {
            Ok(target) => Ok(last_component(&target)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Read { address, path: Path::new("/sys").join(path), source }),
        }
    }
}

/// The folder of a device.
fn device(address: PciAddress) -> PathBuf {
    Path::new(DEVICES).join(address.to_string())
}

/// The number of a device node that is open, as sysfs writes it.
fn number(file: &File) -> Option<String> {
    let metadata = file.metadata().ok()?;
    let device = metadata.file_type().is_char_device().then(|| metadata.rdev())?;
    Some(format!("{}:{}", libc::major(device), libc::minor(device)))
}

fn last_component(path: &Path) -> Option<String> {
    path.file_name().and_then(|name| name.to_str()).map(str::to_owned)
}

fn is_vfio_driver(name: &str) -> bool {
    name == "vfio-pci" || name.ends_with("-vfio-pci") || name.ends_with("_vfio_pci")
}

/// The driver does DMA for the host. The other drivers set `driver_managed_dma` (drivers/pci,
/// drivers/vfio), and the group stays viable.
fn does_host_dma(driver: &str) -> bool {
    !is_vfio_driver(driver) && !matches!(driver, "pci-stub" | "pcieport" | "shpchp")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use std::os::unix::fs::symlink;

    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn device(self, name: &str, driver: Option<&str>, group: Option<&str>) -> Self {
            let folder = self.0.path().join("bus/pci/devices").join(name);
            fs::create_dir_all(&folder).unwrap();
            if let Some(driver) = driver {
                symlink(format!("../../../bus/pci/drivers/{driver}"), folder.join("driver"))
                    .unwrap();
            }
            if let Some(group) = group {
                symlink(format!("../../kernel/iommu_groups/{group}"), folder.join("iommu_group"))
                    .unwrap();
                let members = self.0.path().join("kernel/iommu_groups").join(group).join("devices");
                fs::create_dir_all(&members).unwrap();
                symlink(&folder, members.join(name)).unwrap();
            }
            self
        }

        fn folder(&self, address: PciAddress) -> PathBuf {
            self.0.path().join(device(address))
        }

        fn sysfs(&self) -> Sysfs {
            Sysfs::at(self.0.path())
        }
    }

    fn address(text: &str) -> PciAddress {
        text.parse().unwrap()
    }

    #[test]
    fn accepts_devices_of_vfio_drivers() {
        for driver in ["vfio-pci", "mlx5_vfio_pci", "nvgrace-gpu-vfio-pci"] {
            let tree = Tree::new().device("0000:01:00.0", Some(driver), Some("14"));
            assert_eq!(tree.sysfs().ready_group(address("01:00.0")).unwrap(), 14);
        }
    }

    #[test]
    fn finds_the_node_of_a_device_that_has_one() {
        let tree = Tree::new()
            .device("0000:01:00.0", Some("vfio-pci"), Some("14"))
            .device("0000:02:00.0", Some("vfio-pci"), Some("15"))
            .device("0000:03:00.0", Some("nvme"), Some("16"));
        let folder = |device: &str| {
            let folder = tree.folder(address(device)).join("vfio-dev/vfio3");
            fs::create_dir_all(&folder).unwrap();
            folder
        };
        let null = fs::File::open("/dev/null").unwrap();
        fs::write(folder("01:00.0").join("dev"), "1:3\n").unwrap();
        // Without CONFIG_VFIO_DEVICE_CDEV the folder has no number.
        folder("02:00.0");
        let (sysfs, node) = (tree.sysfs(), |text| tree.sysfs().cdev(address(text)));
        assert_eq!(node("01:00.0"), Some("/dev/vfio/devices/vfio3".into()));
        assert_eq!([node("02:00.0"), node("03:00.0"), node("09:00.0")], [None, None, None]);
        assert!(sysfs.is_cdev_of(&null, address("01:00.0")));
        assert!(!sysfs.is_cdev_of(&null, address("02:00.0")));
        let zero = fs::File::open("/dev/zero").unwrap();
        assert!(!sysfs.is_cdev_of(&zero, address("01:00.0")));
    }

    #[test]
    fn reads_the_ids_that_the_kernel_recorded() {
        let tree = Tree::new().device("0000:01:00.0", None, None);
        let found = || tree.sysfs().identity(address("01:00.0"));
        assert_eq!(found(), None);
        let of = |alias: &str| {
            let file = tree.0.path().join("bus/pci/devices/0000:01:00.0/modalias");
            fs::write(file, alias).unwrap();
            found()
        };
        let nvme = "pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02\n";
        assert_eq!(of(nvme), Some(Identity { vendor: 0x1b36, device: 0x10 }));
        let short = &nvme[..20];
        let others = ["", short, "pci:v00011B36d00000010", "pci:v00001B36e00000010", "usb:v1B36"];
        others.iter().for_each(|text| assert_eq!(of(text), None, "{text:?}"));
    }

    #[test]
    fn reports_each_reason_against_a_device_with_its_remedy() {
        let tree = Tree::new()
            .device("0000:01:00.0", Some("nvme"), Some("14"))
            .device("0000:02:00.0", None, Some("15"))
            .device("0000:03:00.0", Some("vfio-pci"), None)
            .device("0000:04:00.0", Some("vfio-pci"), Some("not-a-number"));
        let error = |text: &str| tree.sysfs().ready_group(address(text)).unwrap_err().to_string();
        assert!(error("09:00.0").contains("there is no such PCI device"));
        assert!(error("01:00.0").contains(
            "bound to nvme; give it to vfio-pci: modprobe vfio-pci; echo 0000:01:00.0 > "
        ));
        assert!(!error("02:00.0").contains("unbind"));
        assert!(error("02:00.0").contains("bound to no driver; "));
        assert!(error("03:00.0").contains("intel_iommu=on"));
        assert!(error("04:00.0").contains("in no IOMMU group"));
    }

    #[test]
    fn names_all_offenders_of_a_group_that_is_not_viable_and_no_other_device() {
        let tree = Tree::new()
            .device("0000:01:00.0", Some("vfio-pci"), Some("14"))
            .device("0000:01:00.1", Some("snd_hda_intel"), Some("14"))
            .device("0000:00:01.0", Some("pcieport"), Some("14"))
            .device("0000:01:00.2", None, Some("14"))
            .device("0000:01:00.3", Some("xhci_hcd"), Some("14"));
        let text = tree.sysfs().not_viable(address("01:00.0"), 14).to_string();
        assert!(
            text.starts_with(
                "0000:01:00.0: IOMMU group 14 is not viable: \
                 0000:01:00.1 is bound to snd_hda_intel; "
            ),
            "{text}"
        );
        assert!(text.contains("0000:01:00.3 is bound to xhci_hcd"), "{text}");
        for innocent in ["pcieport", "0000:01:00.2"] {
            assert!(!text.contains(innocent), "{text}");
        }
    }

    #[test]
    fn recognizes_vfio_variants_by_their_folder() {
        let tree = Tree::new().device("0000:01:00.0", Some("vfio-pci"), Some("14")).device(
            "0000:01:00.1",
            Some("qat_variant"),
            Some("14"),
        );
        let sysfs = tree.sysfs();
        let offender = (address("01:00.1"), "qat_variant".to_owned());
        assert_eq!(sysfs.offenders(14), [offender]);
        fs::create_dir(tree.folder(address("01:00.1")).join("vfio-dev")).unwrap();
        assert_eq!(sysfs.offenders(14), []);
        assert_eq!(sysfs.ready_group(address("01:00.1")).unwrap(), 14);
    }

    #[test]
    fn lists_members_of_a_group_and_skips_other_devices() {
        let tree = Tree::new().device("0000:01:00.1", None, Some("14")).device(
            "0000:01:00.0",
            Some("nvme"),
            Some("14"),
        );
        let sysfs = tree.sysfs();
        let folder = tree.0.path().join("kernel/iommu_groups/14/devices");
        fs::write(folder.join("serial8250"), "").unwrap();
        let members = ["01:00.0", "01:00.1"].map(address);
        assert_eq!(sysfs.members(14), members);
        assert_eq!(sysfs.members(15), []);
        assert_eq!(sysfs.group(address("01:00.0")), Some(14));
        assert_eq!(sysfs.group(address("02:00.0")), None);
    }

    #[test]
    fn a_virtual_function_needs_the_token_of_a_physical_function_on_vfio() {
        for (driver, needs) in [(Some("vfio-pci"), true), (Some("nvme"), false), (None, false)] {
            let tree = Tree::new().device("0000:01:00.0", driver, Some("14")).device(
                "0000:01:00.1",
                Some("vfio-pci"),
                Some("15"),
            );
            let sysfs = tree.sysfs();
            let (physical, virtual_) = (address("01:00.0"), address("01:00.1"));
            assert_eq!([sysfs.physical_function(virtual_), sysfs.vf_token_of(virtual_)], [None; 2]);
            symlink("../0000:01:00.0", tree.folder(virtual_).join("physfn")).unwrap();
            assert_eq!(sysfs.physical_function(virtual_), Some(physical));
            let of = needs.then_some(physical);
            assert_eq!(sysfs.vf_token_of(virtual_), of, "{driver:?}");
            assert_eq!(sysfs.vf_token_of(physical), None);
        }
    }

    #[test]
    fn a_kernel_with_nodes_of_devices_only_lacks_groups() {
        let classes = |names: &[&str]| {
            let tree = Tree::new();
            names
                .iter()
                .for_each(|n| fs::create_dir_all(tree.0.path().join("class").join(n)).unwrap());
            tree.sysfs().lacks_groups()
        };
        assert!(classes(&["vfio-dev"]));
        assert!(!classes(&["vfio-dev", "vfio"]));
        assert!(!classes(&["vfio"]), "Linux before 6.1");
        assert!(!classes(&[]), "VFIO is not loaded");
    }

    #[test]
    fn finds_the_group_of_an_open_file() {
        let tree = Tree::new();
        let folder = tree.0.path().join("dev/char");
        fs::create_dir_all(&folder).unwrap();
        let null = fs::File::open("/dev/null").unwrap();
        let number = |target: &str| {
            let link = folder.join("1:3");
            let _ = fs::remove_file(&link);
            symlink(target, link).unwrap();
            tree.sysfs().group_of(&null)
        };
        assert_eq!(number("../../devices/virtual/vfio/7"), Some(7));
        assert_eq!(number("../../devices/virtual/misc/vfio"), None, "the container");
        assert_eq!(number("../../devices/virtual/vfio/noiommu-7"), None);
        assert_eq!(tree.sysfs().group_of(&fs::File::open("/proc/version").unwrap()), None);
        assert_eq!(Sysfs::at("/nonexistent").group_of(&null), None);
    }

    #[test]
    fn an_io_error_keeps_text_and_kind() {
        let tree = Tree::new().device("0000:01:00.0", Some("nvme"), Some("14"));
        let as_io =
            |text: &str| io::Error::from(tree.sysfs().ready_group(address(text)).unwrap_err());
        let (missing, not_bound) = (as_io("09:00.0"), as_io("01:00.0"));
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        assert!(missing.to_string().starts_with("0000:09:00.0: there is no such PCI device"));
        assert_eq!(not_bound.kind(), io::ErrorKind::Unsupported);
        let not_viable = io::Error::from(tree.sysfs().not_viable(address("01:00.0"), 14));
        assert_eq!(not_viable.kind(), io::ErrorKind::ResourceBusy);
    }
}
