//! The machine under test: its groups and devices, described for the model as the kernel reports
//! them.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;

use vfio_model::PciAddress;
use vfio_model::{Description, Driver, Fd, Kernel, PciFunction, Region};

use crate::Core;
use crate::arena::Arena;

/// The groups under test, their devices, and memory.
#[derive(Clone, Debug)]
pub struct Scene {
    /// The description for the model.
    pub description: Description,
    /// The groups with a device that is bound to vfio-pci.
    pub groups: Vec<u32>,
    /// The devices that are bound to vfio-pci, with their groups.
    pub devices: Vec<(u32, String)>,
    /// The memory for DMA.
    pub arena: Arena,
}

impl Scene {
    /// An imagined machine: two NVMes in groups 10 and 11; two NICs behind a bridge in group 12; in
    /// group 13 a NIC and another with a driver of the host.
    #[must_use]
    pub fn imagined(kernel: Kernel) -> Self {
        let arena = Arena::imagined();
        let members = [
            (10, "0000:00:02.0", Driver::Vfio, PciFunction::nvme()),
            (11, "0000:00:03.0", Driver::Vfio, PciFunction::nvme()),
            (12, "0000:00:04.0", Driver::Bridge, PciFunction::default()),
            (12, "0000:01:01.0", Driver::Vfio, PciFunction::nic()),
            (12, "0000:01:02.0", Driver::Vfio, PciFunction::nic()),
            (13, "0000:02:00.0", Driver::Vfio, PciFunction::nic()),
            (13, "0000:02:00.1", Driver::Host, PciFunction::nic()),
        ];
        let mut scene = Self::new(kernel, arena);
        for (group, name, driver, function) in members {
            // All names above parse.
            if let Ok(address) = name.parse() {
                scene.add(group, address, driver, function);
            }
        }
        scene
    }

    fn new(kernel: Kernel, arena: Arena) -> Self {
        let mut description = Description::new(kernel);
        description.memory = arena.memory();
        Self { description, groups: Vec::new(), devices: Vec::new(), arena }
    }

    fn add(&mut self, group: u32, address: PciAddress, driver: Driver, function: PciFunction) {
        if driver == Driver::Vfio {
            self.devices.push((group, address.to_string()));
            if !self.groups.contains(&group) {
                self.groups.push(group);
            }
        }
        let description = self.description.clone();
        self.description = description.device(address, group, driver, function);
    }

    /// This machine with the groups of these devices, as the kernel behind `core` reports them.
    pub fn of_this_machine(core: &mut impl Core, devices: &[String]) -> io::Result<Self> {
        let mut scene = Self::new(running_kernel()?, Arena::reserve()?);
        scene.description.raw_io = has_capability(17)?;
        scene.description.resource = has_capability(24)?;
        scene.description.iommufd = Path::new("/dev/iommu").exists();
        scene.description.locked_memory = match has_capability(14)? {
            true => None,
            false => locked_memory_limit()?,
        };
        scene.description.mock_devices = scene.description.iommufd && has_mock_devices(core)?;
        let mut groups = Vec::new();
        for device in devices {
            let group = group_of(device)?;
            if !groups.contains(&group) {
                groups.push(group);
                scene.add_group(core, group)?;
            }
        }
        Ok(scene)
    }

    fn add_group(&mut self, core: &mut impl Core, group: u32) -> io::Result<()> {
        let mut members = Vec::new();
        for entry in fs::read_dir(format!("/sys/kernel/iommu_groups/{group}/devices"))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            members.push((driver_of(&name)?, name));
        }
        members.sort_by(|one, other| one.1.cmp(&other.1));
        let is_viable = members.iter().all(|(driver, _)| *driver != Driver::Host);
        for (driver, name) in members {
            let function = match driver {
                Driver::Vfio if is_viable => self.ask(core, group, &name)?,
                _ => PciFunction::default(),
            };
            let address = name.parse().map_err(io::Error::other)?;
            self.add(group, address, driver, function);
            let bus = neighbours(&name)?;
            if bus.first() == Some(&address) {
                self.description = self.description.clone().bus(bus);
            }
        }
        Ok(())
    }

    /// Reads a device from the kernel, and the properties of the IOMMU.
    fn ask(&mut self, core: &mut impl Core, group: u32, name: &str) -> io::Result<PciFunction> {
        let (container, group) = (core.open_container()?, core.open_group(group)?);
        core.set_container(group, container)?;
        let refused = core.set_iommu(container, 6).err();
        self.description.nesting_error = refused.and_then(|error| error.raw_os_error());
        core.unset_container(group)?;
        core.set_container(group, container)?;
        core.set_iommu(container, 3)?;
        self.description.coherent = core.check_extension(container, 4)? != 0;
        let mut info = argument(1024, 0);
        core.iommu_info(container, &mut info)?;
        self.description.page_sizes = word64(&info, 8);
        self.description.iova_ranges = iova_ranges(&info);
        let device = core.open_device(group, name)?;
        let function = function(core, device)?;
        self.description.grows_msix &= function.msix == 0 || msix_grows(core, device)?;
        for fd in [device, group, container] {
            core.close(fd)?;
        }
        Ok(function)
    }
}

fn function(core: &mut impl Core, device: Fd) -> io::Result<PciFunction> {
    let mut info = argument(64, 0);
    core.device_info(device, &mut info)?;
    let mut regions = Vec::new();
    for index in 0..word(&info, 8) {
        let mut region = argument(1024, index);
        // The number includes the VGA region, which few devices have.
        if core.region_info(device, &mut region).is_ok() {
            let flags = word(&region, 4);
            regions.push(Region {
                size: word64(&region, 16),
                flags: flags & !HAS_CAPABILITIES,
                msix_mappable: flags & HAS_CAPABILITIES != 0,
                sparse: None,
            });
        }
    }
    let mut count = |index| {
        let mut irq = argument(16, index);
        core.irq_info(device, &mut irq).map(|()| word(&irq, 12))
    };
    let config = regions.get(CONFIG_REGION).map_or(0, |config| config.size);
    Ok(PciFunction {
        regions,
        intx: count(0)? != 0,
        msi: count(1)?,
        msix: count(2)?,
        express: config > CONVENTIONAL,
        resets: word(&info, 4) & 1 != 0,
        ..PciFunction::default()
    })
}

/// `VFIO_PCI_CONFIG_REGION_INDEX`, and the size of it for a conventional function.
const CONFIG_REGION: usize = 7;
const CONVENTIONAL: u64 = 256;

/// Whether MSI-X has no `VFIO_IRQ_INFO_NORESIZE`.
fn msix_grows(core: &mut impl Core, device: Fd) -> io::Result<bool> {
    let mut irq = argument(16, 2);
    core.irq_info(device, &mut irq)?;
    Ok(word(&irq, 4) & 8 == 0)
}

/// `VFIO_REGION_INFO_FLAG_CAPS`. vfio-pci reports only `MSIX_MAPPABLE` for functions without
/// quirks.
const HAS_CAPABILITIES: u32 = 8;

fn argument(argsz: u32, index: u32) -> Vec<u8> {
    let words = [argsz, 0, index];
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.resize(bytes.len().max(argsz as usize), 0);
    bytes
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    word.map_or(0, |word| u32::from_ne_bytes(*word))
}

fn word64(bytes: &[u8], at: usize) -> u64 {
    let word = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    word.map_or(0, |word| u64::from_ne_bytes(*word))
}

/// The IOVA ranges of `VFIO_IOMMU_GET_INFO`.
fn iova_ranges(info: &[u8]) -> Vec<Range<u64>> {
    let mut at = word(info, 16) as usize;
    while at != 0 && word(info, at) & 0xffff != 1 {
        at = word(info, at.saturating_add(4)) as usize;
    }
    let count = word(info, at.saturating_add(8)) as usize;
    let place = |number: usize| at.saturating_add(16).saturating_add(number.saturating_mul(16));
    (0..count)
        .map(|number| {
            let last = word64(info, place(number).saturating_add(8));
            word64(info, place(number))..last.saturating_add(1)
        })
        .collect()
}

fn has_mock_devices(core: &mut impl Core) -> io::Result<bool> {
    let iommufd = core.open_iommufd()?;
    let ioas = core.ioas_alloc(iommufd, 0)?;
    let made = core.mock_attach(iommufd, ioas).is_ok();
    core.close(iommufd).map(|()| made)
}

fn running_kernel() -> io::Result<Kernel> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(match release.split('.').collect::<Vec<_>>().as_slice() {
        ["6", "1", ..] => Kernel::Linux6_1,
        ["6", ..] => Kernel::Linux6_12,
        _ => Kernel::Linux7_3,
    })
}

/// Whether this process has the capability of this number (linux/capability.h).
fn has_capability(number: u32) -> io::Result<bool> {
    let status = fs::read_to_string("/proc/self/status")?;
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = u64::from_str_radix(set.unwrap_or_default().trim(), 16).map_err(io::Error::other)?;
    Ok(set & 1_u64.wrapping_shl(number) != 0)
}

/// The soft limit of locked memory in bytes; `None` without a limit.
fn locked_memory_limit() -> io::Result<Option<u64>> {
    let limits = fs::read_to_string("/proc/self/limits")?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    let soft = line.and_then(|line| line.split_whitespace().next());
    Ok(soft.and_then(|soft| soft.parse().ok()))
}

fn group_of(device: &str) -> io::Result<u32> {
    let link = fs::read_link(format!("/sys/bus/pci/devices/{device}/iommu_group"))?;
    let name = link.file_name().unwrap_or_default().to_string_lossy().into_owned();
    name.parse().map_err(io::Error::other)
}

/// The functions on the bus of a device, in order; none for a root bus, which cannot be reset.
fn neighbours(device: &str) -> io::Result<Vec<PciAddress>> {
    let folder = fs::canonicalize(format!("/sys/bus/pci/devices/{device}"))?;
    let address = |path: &Path| path.file_name()?.to_str()?.parse::<PciAddress>().ok();
    let Some(bridge) = folder.parent().filter(|parent| address(parent).is_some()) else {
        return Ok(Vec::new());
    };
    let entries = fs::read_dir(bridge)?.flatten();
    let mut found: Vec<_> = entries.filter_map(|entry| address(&entry.path())).collect();
    found.sort();
    Ok(found)
}

fn driver_of(device: &str) -> io::Result<Driver> {
    let folder = Path::new("/sys/bus/pci/devices").join(device);
    if fs::read_to_string(folder.join("class"))?.starts_with("0x0604") {
        return Ok(Driver::Bridge);
    }
    let driver = fs::read_link(folder.join("driver"));
    let driver =
        driver.ok().and_then(|link| Some(link.file_name()?.to_string_lossy().into_owned()));
    Ok(match driver.as_deref() {
        None => Driver::None,
        Some("vfio-pci") => Driver::Vfio,
        Some("pci-stub") => Driver::Stub,
        Some(_) => Driver::Host,
    })
}
