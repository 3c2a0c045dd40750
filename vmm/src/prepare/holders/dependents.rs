//! What the kernel or other functions need a function for: virtual functions, mediated devices, the
//! watchdog, the TPM and other devices that sysfs shows in a folder of their kind.

use std::collections::BTreeSet;

use vfio_passthrough::PciAddress;

use super::super::tree::Tree;
use super::holder::Holder;
use super::layers::functions_of;

/// All such uses.
pub(super) fn holders(tree: &Tree) -> Vec<Holder> {
    let mut holders: Vec<_> = KINDS.iter().flat_map(|kind| kind.holders(tree)).collect();
    let functions = tree.names("sys/bus/pci/devices");
    holders.extend(thunderbolt(tree));
    let addresses = functions.iter().filter_map(|name| name.parse().ok());
    holders.extend(addresses.filter_map(|address| virtual_functions(tree, address)));
    holders.extend(functions.iter().filter_map(|name| xen(tree, name)));
    holders
}

/// A folder of sysfs, each entry of which is a use.
struct Kind {
    folder: &'static str,
    /// How the name of an entry begins.
    prefix: &'static str,
    what: &'static str,
    remedy: &'static str,
    /// The attribute that says whether the entry is in use, and its value if it is not.
    idle: Option<(&'static str, &'static str)>,
}

const KINDS: [Kind; 7] = [
    Kind {
        folder: "sys/class/watchdog",
        prefix: "watchdog",
        what: "the watchdog",
        remedy: "stop what feeds the watchdog",
        idle: Some(("state", "inactive")),
    },
    Kind {
        folder: "sys/class/tpm",
        prefix: "tpm",
        what: "the TPM",
        remedy: "stop what uses the TPM",
        idle: None,
    },
    Kind {
        folder: "sys/class/ipmi",
        prefix: "ipmi",
        what: "the management controller",
        remedy: "modprobe -r ipmi_si",
        idle: None,
    },
    Kind {
        folder: "sys/bus/mdev/devices",
        prefix: "",
        what: "the mediated device",
        remedy: "remove its mediated devices: echo 1 > /sys/bus/mdev/devices/UUID/remove",
        idle: None,
    },
    Kind {
        folder: "sys/bus/vdpa/devices",
        prefix: "",
        what: "the vDPA device",
        remedy: "remove its vDPA devices: vdpa dev del NAME",
        idle: None,
    },
    Kind {
        folder: "sys/class/dma",
        prefix: "dma",
        what: "the DMA channel",
        remedy: "stop what uses the DMA channel",
        idle: Some(("in_use", "0")),
    },
    Kind {
        folder: "sys/bus/cxl/devices",
        prefix: "mem",
        what: "the CXL memory",
        remedy: "take the memory offline: cxl disable-region",
        idle: None,
    },
];

impl Kind {
    fn holders(&self, tree: &Tree) -> Vec<Holder> {
        let names = tree.names(self.folder).into_iter();
        let used = names.filter(|name| name.starts_with(self.prefix) && self.is_used(tree, name));
        let holder = |name: String| {
            let devices = functions_of(tree, self.folder, &name);
            Holder::new(format!("{} {name}", self.what), devices).ends_by(self.remedy)
        };
        used.map(holder).collect()
    }

    fn is_used(&self, tree: &Tree, name: &str) -> bool {
        let Some((attribute, idle)) = self.idle else { return true };
        tree.line(&format!("{}/{name}/{attribute}", self.folder)).is_some_and(|value| value != idle)
    }
}

const THUNDERBOLT: &str = "sys/bus/thunderbolt/devices";

/// Devices behind a Thunderbolt controller. They are called `domain-route`; route 0 is the
/// controller itself (Documentation/ABI/testing/sysfs-bus-thunderbolt).
fn thunderbolt(tree: &Tree) -> Vec<Holder> {
    let is_device = |name: &&String| {
        let parts = name.split_once('-');
        let numbers = parts.and_then(|(domain, route)| {
            Some((u64::from_str_radix(domain, 16).ok()?, u64::from_str_radix(route, 16).ok()?))
        });
        numbers.is_some_and(|(_, route)| route != 0)
    };
    let holder = |name: &String| {
        let what = format!("the Thunderbolt device {name}");
        Holder::new(what, functions_of(tree, THUNDERBOLT, name)).ends_by("unplug that device")
    };
    tree.names(THUNDERBOLT).iter().filter(is_device).map(holder).collect()
}

/// A physical function whose virtual functions exist: they disappear with its driver.
pub(crate) fn virtual_functions(tree: &Tree, address: PciAddress) -> Option<Holder> {
    let folder = format!("sys/bus/pci/devices/{address}");
    let count: u32 = tree.line(&format!("{folder}/sriov_numvfs"))?.parse().ok()?;
    let what = format!("its {count} virtual functions, which would disappear");
    let remedy = format!("echo 0 > /{folder}/sriov_numvfs");
    (count > 0).then(|| Holder::new(what, BTreeSet::from([address])).ends_by(remedy))
}

/// A function that Xen keeps for a guest.
fn xen(tree: &Tree, name: &str) -> Option<Holder> {
    let driver = std::fs::read_link(tree.path(&format!("sys/bus/pci/devices/{name}/driver")));
    let driver = driver.ok()?.file_name()?.to_str()?.to_owned();
    let devices = BTreeSet::from([name.parse().ok()?]);
    let holder = Holder::new(format!("a guest of Xen ({driver})"), devices);
    let remedy = format!("xl pci-assignable-remove {name}");
    matches!(driver.as_str(), "pciback" | "xen-pciback").then(|| holder.ends_by(remedy))
}
