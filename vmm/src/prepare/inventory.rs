//! What sysfs says of the host's PCI devices.

use serde::Serialize;
use vfio_passthrough::PciAddress;
use vfio_passthrough::backend::sysfs::Sysfs;

use super::names::Names;
use super::tree::Tree;

/// A host's PCI devices: its files, and what they mean.
#[derive(Debug)]
pub(crate) struct Inventory {
    /// The files.
    pub(crate) tree: Tree,
    /// Groups and drivers.
    pub(crate) sysfs: Sysfs,
}

/// A PCI function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    /// Where it is.
    pub(crate) address: PciAddress,
    /// Vendor and device (PCI 3.0, 6.2.1).
    pub(crate) id: (u16, u16),
    /// Base class, subclass and programming interface (PCI 3.0, 6.2.1).
    pub(crate) class: u32,
    /// Its IOMMU group.
    pub(crate) group: Option<u32>,
    /// Who has it.
    pub(crate) binding: Binding,
}

/// Who has a device, and who is to have it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Binding {
    /// The driver that it is bound to.
    pub(crate) driver: Option<String>,
    /// Whether that is one of VFIO's.
    pub(crate) vfio: bool,
    /// The only driver that may have it (`driver_override`).
    pub(crate) driver_override: Option<String>,
}

/// A device as `vmm devices` tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Listed {
    /// Its address.
    pub(crate) address: String,
    /// Its name, or its numbers.
    pub(crate) name: String,
    /// Vendor and device in hexadecimal.
    pub(crate) id: String,
    /// Its class in hexadecimal.
    pub(crate) class: String,
    /// Its IOMMU group.
    pub(crate) group: Option<u32>,
    /// Its driver.
    pub(crate) driver: Option<String>,
    /// Whether it can be assigned.
    pub(crate) ready: bool,
    /// If not: why, and the command that mends it.
    pub(crate) why: Option<String>,
}

impl Inventory {
    /// The host whose root is the tree's.
    pub(crate) fn new(tree: Tree) -> Self {
        let sysfs = Sysfs::at(tree.path("sys"));
        Self { tree, sysfs }
    }

    /// All PCI functions, in order.
    pub(crate) fn devices(&self) -> Vec<Device> {
        let names = self.tree.names("sys/bus/pci/devices");
        let addresses = names.iter().filter_map(|name| name.parse().ok());
        addresses.filter_map(|address| self.device(address)).collect()
    }

    /// A PCI function, if it is there.
    pub(crate) fn device(&self, address: PciAddress) -> Option<Device> {
        let number = |name: &str| self.tree.hex(&attribute(address, name)).unwrap_or_default();
        let short = |name: &str| u16::try_from(number(name)).unwrap_or_default();
        self.sysfs.device(address).exists().then(|| Device {
            address,
            id: (short("vendor"), short("device")),
            class: u32::try_from(number("class")).unwrap_or_default(),
            group: self.sysfs.group(address),
            binding: self.binding(address),
        })
    }

    /// Who has a device.
    pub(crate) fn binding(&self, address: PciAddress) -> Binding {
        let driver_override = self.tree.line(&attribute(address, "driver_override"));
        Binding {
            driver: self.sysfs.driver(address),
            vfio: self.sysfs.is_vfio(address),
            // So the kernel prints that there is none.
            driver_override: driver_override.filter(|name| name != "(null)"),
        }
    }

    /// Why a device cannot be assigned, with the command that mends it.
    pub(crate) fn obstacle(&self, device: &Device) -> Option<String> {
        let address = device.address;
        let Some(group) = device.group else {
            return Some("in no IOMMU group: see 'vmm check'".to_owned());
        };
        if device.is_bridge() {
            return Some("a bridge: it stays with the host".to_owned());
        }
        if !device.binding.vfio {
            return Some(format!("not on vfio-pci: vmm bind {address}"));
        }
        let others = self.sysfs.offenders(group);
        (!others.is_empty())
            .then(|| format!("{}: {}", shared(group, &others), bind_command(&others)))
    }

    /// The device as a line of the list.
    pub(crate) fn listed(&self, device: &Device, names: &Names) -> Listed {
        let why = self.obstacle(device);
        let (vendor, number) = device.id;
        Listed {
            address: device.address.to_string(),
            name: names.name(device.id, device.class),
            id: format!("{vendor:04x}:{number:04x}"),
            class: format!("{:06x}", device.class),
            group: device.group,
            driver: device.binding.driver.clone(),
            ready: why.is_none(),
            why,
        }
    }
}

impl Device {
    /// PCI-to-PCI and CardBus bridges (PCI Code and ID Assignment 1.11, 1.7) have another header,
    /// and vfio-pci takes none of them.
    pub(crate) fn is_bridge(&self) -> bool {
        matches!(self.class >> 8, 0x0604 | 0x0607 | 0x0609)
    }
}

/// The file of a device's attribute.
pub(crate) fn attribute(address: PciAddress, name: &str) -> String {
    format!("sys/bus/pci/devices/{address}/{name}")
}

/// Says which drivers of the host have members of a group.
pub(crate) fn shared(group: u32, others: &[(PciAddress, String)]) -> String {
    let each = |(address, driver): &(PciAddress, String)| format!("{address} is bound to {driver}");
    let each: Vec<_> = others.iter().map(each).collect();
    format!("group {group} is not viable, since {}", each.join(" and "))
}

/// The command that gives devices to vfio-pci.
pub(crate) fn bind_command(others: &[(PciAddress, String)]) -> String {
    let addresses: Vec<_> = others.iter().map(|(address, _)| address.to_string()).collect();
    format!("vmm bind {}", addresses.join(" "))
}
