//! The host's PCI devices in sysfs.

use serde::Serialize;
use vfio_passthrough::PciAddress;
use vfio_passthrough::backend::sysfs::Sysfs;

use super::names::Names;
use super::tree::Tree;

/// The host's PCI devices.
#[derive(Debug)]
pub(crate) struct Inventory {
    /// The files of the host.
    pub(crate) tree: Tree,
    /// IOMMU groups and drivers.
    pub(crate) sysfs: Sysfs,
}

/// A PCI function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) address: PciAddress,
    /// Vendor and device id (PCI 3.0, 6.2.1).
    pub(crate) id: (u16, u16),
    /// Base class, subclass and programming interface (PCI 3.0, 6.2.1).
    pub(crate) class: u32,
    /// The IOMMU group.
    pub(crate) group: Option<u32>,
    pub(crate) binding: Binding,
}

/// The driver of a device, and the driver that may bind to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Binding {
    /// The bound driver.
    pub(crate) driver: Option<String>,
    /// Whether the driver is one of VFIO's.
    pub(crate) vfio: bool,
    /// The only driver that may bind to the device (`driver_override`).
    pub(crate) driver_override: Option<String>,
}

/// A row of `vmm devices`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Listed {
    pub(crate) address: String,
    /// The name, or numeric ids.
    pub(crate) name: String,
    /// Vendor and device id in hexadecimal.
    pub(crate) id: String,
    /// The class in hexadecimal.
    pub(crate) class: String,
    /// The IOMMU group.
    pub(crate) group: Option<u32>,
    pub(crate) driver: Option<String>,
    /// Whether the device can be assigned.
    pub(crate) ready: bool,
    /// The obstacle, with the command that removes it.
    pub(crate) why: Option<String>,
}

impl Inventory {
    /// The host with the files of `tree`.
    pub(crate) fn new(tree: Tree) -> Self {
        let sysfs = Sysfs::at(tree.path("sys"));
        Self { tree, sysfs }
    }

    /// All PCI functions in the order of their addresses.
    pub(crate) fn devices(&self) -> Vec<Device> {
        let names = self.tree.names("sys/bus/pci/devices");
        let addresses = names.iter().filter_map(|name| name.parse().ok());
        addresses.filter_map(|address| self.device(address)).collect()
    }

    /// The PCI function at `address`, if it exists.
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

    /// The binding of a device.
    pub(crate) fn binding(&self, address: PciAddress) -> Binding {
        let driver_override = self.tree.line(&attribute(address, "driver_override"));
        Binding {
            driver: self.sysfs.driver(address),
            vfio: self.sysfs.is_vfio(address),
            // The kernel prints "(null)" for an empty override.
            driver_override: driver_override.filter(|name| name != "(null)"),
        }
    }

    /// The reason why a device cannot be assigned, with the command that removes it.
    pub(crate) fn obstacle(&self, device: &Device) -> Option<String> {
        let address = device.address;
        let Some(group) = device.group else {
            return Some("in no IOMMU group: vmm check".to_owned());
        };
        if device.is_bridge() {
            return Some("a bridge, which stays with the host".to_owned());
        }
        if !device.binding.vfio {
            return Some(format!("not bound to vfio-pci: vmm bind {address}"));
        }
        let others = self.sysfs.offenders(group);
        (!others.is_empty())
            .then(|| format!("{}: {}", shared(group, &others), bind_command(&others)))
    }

    /// The nodes by which a process opens a device: that of its group, or its own
    /// (`/dev/vfio/devices/vfioN`).
    pub(crate) fn vfio_nodes(&self, address: PciAddress, group: u32) -> Vec<String> {
        let own = self.tree.names(&attribute(address, "vfio-dev"));
        let own = own.iter().map(|name| format!("dev/vfio/devices/{name}"));
        own.chain([format!("dev/vfio/{group}")]).collect()
    }

    /// The row of a device.
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
    /// PCI-to-PCI and CardBus bridges (PCI Code and ID Assignment 1.11, 1.7) have another header
    /// type, and vfio-pci refuses them.
    pub(crate) fn is_bridge(&self) -> bool {
        matches!(self.class >> 8, 0x0604 | 0x0607 | 0x0609)
    }
}

/// The path of a device's sysfs attribute.
pub(crate) fn attribute(address: PciAddress, name: &str) -> String {
    format!("sys/bus/pci/devices/{address}/{name}")
}

/// Names the members of a group that are bound to drivers of the host.
pub(crate) fn shared(group: u32, others: &[(PciAddress, String)]) -> String {
    let each = |(address, driver): &(PciAddress, String)| format!("{address} is bound to {driver}");
    let each: Vec<_> = others.iter().map(each).collect();
    format!("group {group} is not viable, because {}", each.join(" and "))
}

/// The command that binds devices to vfio-pci.
pub(crate) fn bind_command(others: &[(PciAddress, String)]) -> String {
    let addresses: Vec<_> = others.iter().map(|(address, _)| address.to_string()).collect();
    format!("vmm bind {}", addresses.join(" "))
}
