//! The host's PCI devices in sysfs.

use std::cell::OnceCell;
use std::path::Path;

use nix::unistd::{AccessFlags, access};
use serde::Serialize;
use vfio_passthrough::PciAddress;
use vfio_passthrough::backend::sysfs::{ReservedKind, Sysfs};

use super::holders::{self, Holder, Opened};
use super::names::Names;
use super::presence::{Facts, Finding};
use super::tree::Tree;
use crate::host::arch::REMAPPED;
use crate::passthrough::iommu::iommufd_node;

pub(crate) use super::tree::attribute;

/// The host's PCI devices.
#[derive(Debug)]
pub(crate) struct Inventory {
    /// The files of the host.
    pub(crate) tree: Tree,
    /// IOMMU groups and drivers.
    pub(crate) sysfs: Sysfs,
    seen: Seen,
}

/// What is the same for all devices of a list. Each is read when the first device needs it.
#[derive(Debug, Default)]
struct Seen {
    holders: OnceCell<Vec<Holder>>,
    opened: OnceCell<Opened>,
    remaps_interrupts: OnceCell<bool>,
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
    /// The physical function whose VF token the device needs, if it needs one.
    pub(crate) vf_token_of: Option<String>,
    /// The obstacle, with the command that removes it.
    pub(crate) why: Option<String>,
}

impl Inventory {
    /// The host with the files of `tree`.
    pub(crate) fn new(tree: Tree) -> Self {
        let sysfs = Sysfs::at(tree.path("sys"));
        Self { tree, sysfs, seen: Seen::default() }
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
        self.sysfs.has_device(address).then(|| Device {
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
            return Some(match self.has_group_later(device) && !device.is_bridge() {
                true => self.not_bound(address),
                false => "in no IOMMU group: vmm check".to_owned(),
            });
        };
        if device.is_bridge() {
            return Some("a bridge, which stays with the host".to_owned());
        }
        if let Some(Finding { what, remedy }) = self.finding(device) {
            return Some(format!("{what}: {remedy}"));
        }
        if !device.binding.vfio {
            return Some(self.not_bound(address));
        }
        self.obstacle_of_group(address, group)
    }

    fn not_bound(&self, address: PciAddress) -> String {
        let holders = self.seen.holders.get_or_init(|| holders::holders(&self.tree));
        match holders::summary(holders, address) {
            Some((what, _)) => format!("in use by the host for {what}"),
            None => format!("not bound to vfio-pci: vmm bind {address}"),
        }
    }

    fn obstacle_of_group(&self, address: PciAddress, group: u32) -> Option<String> {
        let others = self.sysfs.offenders(group);
        let node = format!("dev/vfio/{group}");
        if self.is_noiommu(group) {
            return Some("its group has no IOMMU (noiommu): vmm check".to_owned());
        }
        if !others.is_empty() {
            return Some(format!("{}: {}", shared(group, &others), bind_command(&others)));
        }
        if self.is_fixed(group) {
            return Some(format!("the firmware uses memory by this device: vmm check {address}"));
        }
        if !self.remaps_interrupts() && !self.allows_unsafe_interrupts() {
            return Some("interrupt remapping is off: vmm check".to_owned());
        }
        let by_group = !self.uses_iommufd(address);
        if by_group && self.sysfs.lacks_groups() {
            return Some("this kernel's VFIO has no groups, and no iommufd: vmm check".to_owned());
        }
        if by_group && !self.tree.path(&node).exists() {
            return Some(format!("no /{node}: vmm check {address}"));
        }
        let opened = self.seen.opened.get_or_init(|| Opened::of(&self.tree));
        let user = opened.by(&self.vfio_nodes(address, group));
        user.map(|user| format!("in use by {user}"))
    }

    /// Whether this process may open iommufd, and the device suits it. `--iommu auto` uses iommufd
    /// if this is so for each device.
    pub(crate) fn uses_iommufd(&self, address: PciAddress) -> bool {
        let may_open = |node: &Path| self.may_open(below_root(node));
        let device = (address, self.sysfs.physical_function(address));
        self.has_iommufd() && iommufd_node(&self.sysfs, device, may_open).is_some()
    }

    /// Whether this process may open iommufd.
    pub(crate) fn has_iommufd(&self) -> bool {
        self.may_open("dev/iommu")
    }

    /// The device's own node, below the root.
    pub(crate) fn node_of(&self, address: PciAddress) -> Option<String> {
        Some(below_root(&self.sysfs.cdev(address)?).to_owned())
    }

    fn may_open(&self, node: &str) -> bool {
        access(&self.tree.path(node), AccessFlags::R_OK | AccessFlags::W_OK).is_ok()
    }

    /// VFIO made this group for devices without an IOMMU; the kernel gives it this name
    /// (vfio_noiommu_group_alloc).
    pub(crate) fn is_noiommu(&self, group: u32) -> bool {
        let name = self.tree.line(&format!("sys/kernel/iommu_groups/{group}/name"));
        name.as_deref() == Some("vfio-noiommu")
    }

    /// Whether a device without a group gets one from its next driver. Where a device tree describes
    /// the IOMMU, Linux before 6.15 looks it up when a driver binds (of_dma_configure).
    pub(crate) fn has_group_later(&self, device: &Device) -> bool {
        device.group.is_none() && device.binding.driver.is_none() && !self.iommus().is_empty()
    }

    /// The names of the host's IOMMUs.
    pub(crate) fn iommus(&self) -> Vec<String> {
        self.tree.names("sys/class/iommu")
    }

    /// VFIO refuses a group if the firmware uses memory at fixed addresses through its devices
    /// (linux/iommu.h, `IOMMU_RESV_DIRECT`).
    fn is_fixed(&self, group: u32) -> bool {
        let mut regions = self.sysfs.reserved_regions(group).into_iter();
        regions.any(|region| region.kind == ReservedKind::Direct)
    }

    /// Whether a device can send no interrupts but its own.
    pub(crate) fn remaps_interrupts(&self) -> bool {
        let read = || {
            let interrupts = self.tree.text("proc/interrupts").unwrap_or_default();
            REMAPPED.iter().any(|word| interrupts.contains(word))
        };
        *self.seen.remaps_interrupts.get_or_init(read)
    }

    /// VFIO accepts groups whose devices can write any interrupt (vfio_iommu_type1_attach_group,
    /// iommufd_device_bind).
    pub(crate) fn allows_unsafe_interrupts(&self) -> bool {
        let line = self.tree.line(self.unsafe_interrupts());
        line.is_some_and(|line| line.starts_with(['Y', '1']))
    }

    /// The parameter that accepts groups without interrupt remapping.
    pub(crate) fn unsafe_interrupts(&self) -> &'static str {
        match self.has_iommufd() {
            true => "sys/module/iommufd/parameters/allow_unsafe_interrupts",
            false => "sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
        }
    }

    /// The nodes by which a process opens a device: that of its group, or its own
    /// (`/dev/vfio/devices/vfioN`).
    pub(crate) fn vfio_nodes(&self, address: PciAddress, group: u32) -> Vec<String> {
        let own = self.tree.names(&attribute(address, "vfio-dev"));
        let own = own.iter().map(|name| format!("dev/vfio/devices/{name}"));
        own.chain([format!("dev/vfio/{group}")]).collect()
    }

    /// The reason why a device cannot be used, whatever its driver and its group are.
    pub(crate) fn finding(&self, device: &Device) -> Option<Finding> {
        let (address, has_driver) = (device.address, device.binding.vfio);
        let facts = Facts { address, has_driver, is_bridge: device.is_bridge() };
        facts.finding(&self.tree, &self.sysfs)
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
            vf_token_of: self.sysfs.vf_token_of(device.address).map(|own| own.to_string()),
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

/// The path of a node without the first slash.
fn below_root(node: &Path) -> &str {
    node.to_str().unwrap_or_default().trim_start_matches('/')
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
