//! The checks of one device.

use std::fs::File;
use std::io;

use nix::libc::{EACCES, ENOENT, EPERM};
use resources::{BarRequest, BarSpace};
use vfio_passthrough::PciAddress;
use vfio_passthrough::backend::sysfs::{ReservedKind, ReservedRegion};

use super::super::holders::{self, Opened};
use super::super::inventory::{Device, Inventory, attribute, bind_command, shared};
use super::super::names::Names;
use super::super::presence::Finding;
use super::driver::{DISABLE_DENYLIST, is_denied};
use super::facts::{self, Interrupts};
use super::line::Line;

/// A device as a guest would get it.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) address: PciAddress,
    pub(crate) bars: Vec<BarRequest>,
    pub(crate) interrupts: Interrupts,
    /// The address bits of its IOMMU, if the IOMMU reports them.
    pub(crate) translated_bits: Option<u8>,
}

/// The lines of a device, and the device if it exists.
pub(crate) fn lines(host: &Inventory, address: PciAddress) -> (Vec<Line>, Option<Function>) {
    let Some(device) = host.device(address) else {
        let line = Line::fail("device", "there is no such PCI device", "vmm devices");
        return (vec![line], None);
    };
    let name = Names::of(&host.tree).name(device.id, device.class);
    let mut lines = vec![kind(&device, name), config_space(host, &device), driver(host, &device)];
    lines.extend((!device.binding.vfio).then(|| in_use(host, address)));
    lines.extend(host.sysfs.vf_token_of(address).map(|physical| token(address, physical)));
    match device.group {
        Some(group) => of_group(host, &device, group, &mut lines),
        None if host.has_group_later(&device) => {
            let what = "the kernel makes the device's group when a driver binds";
            lines.push(Line::fail("group", what, format!("vmm bind {address}")));
        }
        None => {
            let line = Line::fail("group", "the device is in no IOMMU group", IOMMU_OF_DEVICE);
            lines.push(line);
        }
    }
    lines.push(reset(host, address));
    let resource = host.tree.text(&attribute(address, "resource"));
    let bars = facts::bars(&address.to_string(), &resource.unwrap_or_default());
    lines.push(Line::ok("bars", describe_bars(&bars)));
    let config = host.tree.bytes(&attribute(address, "config"));
    let interrupts = facts::interrupts(&config.unwrap_or_default());
    lines.push(interrupts_line(interrupts));
    let capability = host.tree.hex(&attribute(address, "iommu/intel-iommu/cap"));
    let function = Function {
        address,
        translated_bits: capability.map(facts::translated_bits),
        bars,
        interrupts: interrupts.unwrap_or_default(),
    };
    (lines, Some(function))
}

const IOMMU_OF_DEVICE: &str = "see the line 'iommu'; if other devices are in groups, the firmware excludes this device (DMAR, IVRS)";

fn kind(device: &Device, name: String) -> Line {
    match device.is_bridge() {
        true => Line::fail(
            "device",
            format!("{name}: the device is a bridge, which stays with the host"),
            "assign the devices behind it: see 'vmm devices'",
        ),
        false => Line::ok("device", name),
    }
}

fn config_space(host: &Inventory, device: &Device) -> Line {
    match host.finding(device) {
        None => Line::ok("config-space", "the device responds"),
        Some(Finding { what, remedy }) => Line::fail("config-space", what, remedy),
    }
}

fn driver(host: &Inventory, device: &Device) -> Line {
    if !device.binding.vfio && is_denied(&host.tree, device) {
        let remedy = format!("for guests that you trust: modprobe vfio-pci {DISABLE_DENYLIST}=1");
        return Line::fail("driver", "vfio-pci refuses this kind of device (denylist)", remedy);
    }
    let remedy = format!("vmm bind {}", device.address);
    match &device.binding.driver {
        Some(name) if device.binding.vfio => Line::ok("driver", format!("bound to {name}")),
        Some(name) => Line::fail("driver", format!("bound to {name}"), remedy),
        None => Line::fail("driver", "bound to no driver", remedy),
    }
}

/// What `vmm bind` would take from the host.
fn in_use(host: &Inventory, address: PciAddress) -> Line {
    let mut known = holders::holders(&host.tree);
    known.extend(Opened::of(&host.tree).holders(&host.tree, &[address]));
    match holders::uses(&host.tree, &known, address, holders::is_claimed) {
        Some((what, remedy)) => Line::fail(
            "in-use",
            format!("the host uses the device for {what}; 'vmm bind' refuses it"),
            remedy.unwrap_or_else(|| "use another device".to_owned()),
        ),
        None => Line::ok("in-use", "the host does not use the device"),
    }
}

fn token(address: PciAddress, physical: PciAddress) -> Line {
    Line::warning(
        "vf-token",
        format!(
            "the device opens only with a token, because its physical function {physical} is on \
             vfio-pci too"
        ),
        format!(
            "--vfio {address},vf-token=UUID, with the UUID that the user of {physical} has set"
        ),
    )
}

fn of_group(host: &Inventory, device: &Device, group: u32, lines: &mut Vec<Line>) {
    let mut others = host.sysfs.offenders(group);
    // The line "driver" reports this device already.
    others.retain(|(member, _)| *member != device.address);
    lines.push(match others.as_slice() {
        _ if host.is_noiommu(group) => {
            Line::fail(
                "group",
                format!("group {group} has no IOMMU (vfio.enable_unsafe_noiommu_mode), so its devices could access all of the host's memory"),
                "enable the IOMMU (see the line 'iommu') and disable vfio.enable_unsafe_noiommu_mode; then vmm unbind and bind the device",
            )
        }
        [] => Line::ok("group", members(host, group)),
        _ => Line::fail(
            "group",
            format!("{}; {}", shared(group, &others), members(host, group)),
            bind_command(&others),
        ),
    });
    lines.extend(device.binding.vfio.then(|| node(host, device, group)));
    lines.push(iova(&host.sysfs.reserved_regions(group)));
}

fn members(host: &Inventory, group: u32) -> String {
    let member = |address: &PciAddress| {
        let driver = host.sysfs.driver(*address);
        format!("{address} ({})", driver.as_deref().unwrap_or("no driver"))
    };
    let members: Vec<_> = host.sysfs.members(group).iter().map(member).collect();
    format!("group {group} has {}", members.join(", "))
}

/// Opens the node by which `--iommu auto` opens the device.
fn node(host: &Inventory, device: &Device, group: u32) -> Line {
    match host.node_of(device.address).filter(|_| host.uses_iommufd(device.address)) {
        Some(node) => own_node(host, device, group, &node),
        None => group_node(host, device, group),
    }
}

/// The device's own node can be open more than once, but only one of its files can be bound.
fn own_node(host: &Inventory, device: &Device, group: u32, node: &str) -> Line {
    let opened = Opened::of(&host.tree);
    match opened.by(&host.vfio_nodes(device.address, group)) {
        None => Line::ok("node", format!("/{node} opens, for iommufd")),
        Some(user) => Line::fail(
            "node",
            format!("/{node} is in use by {user}"),
            format!("fuser -v /{node} /dev/vfio/{group}"),
        ),
    }
}

/// Opens the group's node. A group can be open only once.
fn group_node(host: &Inventory, device: &Device, group: u32) -> Line {
    let node = format!("/dev/vfio/{group}");
    let opened = File::options().read(true).write(true).open(host.tree.path(&node));
    let (what, remedy) = match opened {
        Ok(_) => return Line::ok("node", format!("{node} opens")),
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            let opened = Opened::of(&host.tree);
            let user = opened.by(&host.vfio_nodes(device.address, group)).unwrap_or("a process");
            (format!("{node} is in use by {user}"), format!("fuser -v {node}"))
        }
        Err(error) => no_node(host, &node, group, &error),
    };
    Line::fail("node", what, remedy)
}

/// Why the node of a group does not open, and the remedy.
fn no_node(host: &Inventory, node: &str, group: u32, error: &io::Error) -> (String, String) {
    let in_container = format!(
        "start the container with '--device {node}', or set DeviceAllow={node} in the unit"
    );
    match error.raw_os_error() {
        Some(EACCES) => {
            (format!("no permission to open {node}"), format!("sudo chown $USER {node}"))
        }
        Some(EPERM) => (
            format!("opening {node} is not permitted: the device cgroup of this process denies it"),
            in_container,
        ),
        Some(ENOENT) if host.sysfs.lacks_groups() => (
            format!("{node} does not exist: this kernel's VFIO has no groups"),
            "use iommufd (see the line 'vfio'), or a kernel with CONFIG_VFIO_GROUP".to_owned(),
        ),
        Some(ENOENT) if host.tree.path(&format!("sys/class/vfio/{group}")).exists() => {
            (format!("{node} does not exist here, although the kernel has the group"), in_container)
        }
        _ => (
            format!("{node} does not open: {error}"),
            "modprobe vfio; the kernel needs CONFIG_VFIO_GROUP".to_owned(),
        ),
    }
}

/// VFIO refuses a group if the firmware uses memory at fixed addresses through its devices
/// (linux/iommu.h, `IOMMU_RESV_DIRECT`).
fn iova(reserved: &[ReservedRegion]) -> Line {
    let describe = |region: &ReservedRegion| format!("{} ({})", region.range, region.kind);
    let all: Vec<_> = reserved.iter().map(describe).collect();
    match all.is_empty() {
        true => Line::ok("iova", "no reserved addresses"),
        false if reserved.iter().any(|region| region.kind == ReservedKind::Direct) => Line::fail(
            "iova",
            format!(
                "the firmware uses memory by this device (RMRR); the reserved addresses are {}",
                all.join(", ")
            ),
            "disable the firmware's use of the device (USB legacy support, remote management), or update the firmware",
        ),
        false => Line::ok("iova", format!("the reserved addresses are {}", all.join(", "))),
    }
}

fn reset(host: &Inventory, address: PciAddress) -> Line {
    // Since 5.15 the kernel reports the methods; before, only that the device can be reset.
    let file = attribute(address, "reset_method");
    let methods = host.tree.line(&file);
    let can = host.sysfs.device_has(address, "reset");
    match methods {
        Some(methods) => Line::ok("reset", format!("resets by: {methods}")),
        None if can && host.tree.path(&file).exists() => Line::warning(
            "reset",
            "the device's resets are disabled: vmm refuses the device unless all devices on its bus are assigned, so that the bus can be reset",
            format!("echo default > /{file}"),
        ),
        None if can => Line::ok("reset", "the kernel can reset it"),
        None => Line::warning(
            "reset",
            "the device has no reset of its own: vmm refuses the device unless all devices on its bus are assigned, so that the bus can be reset",
            format!(
                "assign all devices on its bus, or accept the device without a reset: --vfio {address},reset=none"
            ),
        ),
    }
}

fn describe_bars(bars: &[BarRequest]) -> String {
    let bar = |bar: &BarRequest| {
        let space = match bar.space {
            BarSpace::Io => "ports",
            BarSpace::Memory32 => "32-bit",
            BarSpace::Memory64 => "64-bit",
        };
        format!("BAR{} {} {space}", bar.index, size(bar.size))
    };
    let bars: Vec<_> = bars.iter().map(bar).collect();
    match bars.is_empty() {
        true => "none".to_owned(),
        false => bars.join(", "),
    }
}

/// The size in the largest exact unit.
fn size(bytes: u64) -> String {
    match bytes.trailing_zeros() {
        40.. => format!("{}T", bytes >> 40),
        30.. => format!("{}G", bytes >> 30),
        20.. => format!("{}M", bytes >> 20),
        10.. => format!("{}K", bytes >> 10),
        _ => bytes.to_string(),
    }
}

fn interrupts_line(interrupts: Option<Interrupts>) -> Line {
    let Some(interrupts) = interrupts else {
        return Line::ok("interrupts", "unknown: only root can read the config space");
    };
    let vectors =
        |name: &str, count: Option<u16>| count.map(|count| format!("{name} with {count} vectors"));
    let all = [
        vectors("MSI-X", interrupts.msix),
        vectors("MSI", interrupts.msi),
        interrupts.pin.then(|| "a pin".to_owned()),
    ];
    let all: Vec<_> = all.into_iter().flatten().collect();
    match all.is_empty() {
        true => Line::ok("interrupts", "none"),
        false => Line::ok("interrupts", all.join(", ")),
    }
}
