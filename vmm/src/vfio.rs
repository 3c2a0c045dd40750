//! Glue: the devices given by `--vfio`, from the library `vfio-passthrough` to this VMM's PCI bus and RAM.

use std::os::fd::RawFd;
use std::path::Path;
use std::sync::Arc;

use devices::{PciFunction, SlotsFreed};
use resources::{AddressRange, BarRequest, BarSpace, Layout};
use vfio_passthrough::address::ParsePciAddressError;
use vfio_passthrough::backend::group::GroupDevice;
use vfio_passthrough::backend::sysfs::Sysfs;
use vfio_passthrough::counters::VfioCalls;
use vfio_passthrough::dma::Mapping;
use vfio_passthrough::host::HostMemory;
use vfio_passthrough::kvm::KvmHost;
use vfio_passthrough::{
    Bar, BarIndex, BarKind, ConfigEffects, Container, Iova, PassthroughFunction, PciAddress,
    ResetPolicy, Space, VmmServices,
};
use vm_memory::GuestMemoryRegion;

use crate::Error;
use crate::boot::intx_gsi;
use crate::cli::Passthrough;
use crate::control::{BarInfo, DeviceInfo};
use crate::handed::Handed;
use crate::memory::Ram;
use crate::posted::{Collect, PostedRange};
use crate::stats::{BarHeat, Stats};

/// The host bridge has slot 0.
const FIRST_SLOT: u8 = 1;

/// A function on the PCI bus, with the count of its traps.
pub struct GuestFunction {
    function: Arc<PassthroughFunction>,
    heat: Arc<BarHeat>,
    posted: PostedRange,
}

impl PciFunction for GuestFunction {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.function.config_read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> SlotsFreed {
        self.apply(&self.function.config_write(offset, data))
    }

    fn retry_placement(&self) {
        let _ = self.apply(&self.function.retry_placement());
    }

    fn memory_read(&self, gpa: u64, data: &mut [u8]) -> bool {
        self.read(Space::Memory, gpa, data)
    }

    fn memory_write(&self, gpa: u64, data: &[u8]) -> Option<SlotsFreed> {
        self.write(Space::Memory, gpa, data)
    }

    fn io_read(&self, port: u16, data: &mut [u8]) -> bool {
        self.read(Space::Io, port.into(), data)
    }

    fn io_write(&self, port: u16, data: &[u8]) -> Option<SlotsFreed> {
        self.write(Space::Io, port.into(), data)
    }
}

impl GuestFunction {
    /// `function`, whose traps `stats` counts, and whose writes that may come late `posted` collects.
    pub fn new(
        function: &Arc<PassthroughFunction>,
        posted: Arc<dyn Collect>,
        stats: &Stats,
    ) -> Self {
        Self {
            function: Arc::clone(function),
            heat: stats.bar_heat(&function.address().to_string()),
            posted: PostedRange::new(posted),
        }
    }

    /// The function itself.
    pub fn function(&self) -> &PassthroughFunction {
        &self.function
    }

    /// Does what a change of the function asks of the VMM, but for its other functions.
    pub fn apply(&self, effects: &ConfigEffects) -> SlotsFreed {
        self.posted.apply(effects);
        SlotsFreed(effects.slots_freed)
    }

    fn decode(&self, space: Space, address: u64) -> Option<(BarIndex, u64)> {
        let (bar, offset) = self.function.decode(space, address)?;
        self.heat.at(bar.number(), offset);
        Some((bar, offset))
    }

    fn read(&self, space: Space, address: u64, data: &mut [u8]) -> bool {
        let place = self.decode(space, address);
        place.map(|(bar, offset)| self.function.bar_read(bar, offset, data)).is_some()
    }

    fn write(&self, space: Space, address: u64, data: &[u8]) -> Option<SlotsFreed> {
        let (bar, offset) = self.decode(space, address)?;
        let effects = self.function.bar_write(bar, offset, data);
        Some(effects.map_or(SlotsFreed(false), |effects| self.apply(&effects)))
    }
}

/// The assigned devices, opened, and the I/O address space that they share. They stay while the guest reboots.
pub struct Devices {
    container: Arc<Container>,
    opened: Vec<Opened>,
}

struct Opened {
    /// On the guest's bus.
    slot: u8,
    address: PciAddress,
    device: Arc<GroupDevice>,
    reset: ResetPolicy,
    p2p: bool,
}

impl Devices {
    /// Opens the devices that are asked for in one container, known to the VM of `host`; none if none are.
    pub fn open(
        asked: &[Passthrough],
        addresses: Vec<PciAddress>,
        mut handed: Handed,
        host: &KvmHost,
    ) -> Result<Option<Self>, Error> {
        if asked.is_empty() {
            return Ok(None);
        }
        let container = Container::open()?;
        link(&container, host)?;
        let mut open =
            |((slot, address), asked): ((u8, PciAddress), &Passthrough)| -> Result<_, Error> {
                let device = match asked.group {
                    None => container.open_device(address)?,
                    Some(fd) => container.open_device_by(address, handed.remove(fd)?)?,
                };
                Ok(Opened { slot, address, device, reset: asked.reset, p2p: asked.p2p })
            };
        let opened =
            (FIRST_SLOT..).zip(addresses).zip(asked).map(&mut open).collect::<Result<_, _>>()?;
        Ok(Some(Self { container, opened }))
    }

    /// Makes the devices those of another VM.
    pub fn link(&self, host: &KvmHost) -> Result<(), Error> {
        link(&self.container, host)
    }

    /// The functions as they are after power-on, in the VM of `host`: of the devices that were not given up in the
    /// guest's lives before.
    pub fn functions(&self, host: &KvmHost) -> Result<Functions, Error> {
        // There must be another device that reaches it.
        let others = self.opened.len() > 1;
        let function = |opened: &Opened| -> Result<_, Error> {
            let p2p = (others && opened.p2p).then(|| self.container.dma().clone());
            let host = VmmServices { p2p, ..host.services_with_intx(intx_gsi(opened.slot)) };
            let device = opened.device.clone();
            let function = PassthroughFunction::new(opened.address, device, &host, opened.reset)?;
            Ok((opened.slot, Arc::new(function)))
        };
        let left = self.opened.iter().filter(|opened| !opened.device.is_closed());
        Ok(Functions(left.map(function).collect::<Result<_, _>>()?))
    }

    /// What the IOMMU can map.
    pub fn apertures(&self) -> Result<Vec<AddressRange>, Error> {
        let ranges = self.container.dma().iova_ranges()?;
        Ok(ranges.iter().map(|range| AddressRange::new(range.start(), range.size())).collect())
    }

    /// Lets the devices reach all of `ram`, which pins it; all or nothing.
    pub fn map(&self, ram: &Ram) -> Result<Vec<Mapping>, Error> {
        let memory = ram.regions().iter().map(|region| {
            let memory: Arc<dyn HostMemory> = region.clone();
            (Iova(region.start_addr().0), memory)
        });
        Ok(self.container.dma().map_all(memory)?)
    }

    /// The calls made so far.
    pub fn calls(&self) -> Arc<VfioCalls> {
        Arc::clone(self.container.calls())
    }
}

/// Adds what was counted to `stats`.
pub fn count(calls: &VfioCalls, stats: &Stats) {
    let calls = calls.values();
    calls.for_each(|(call, count)| stats.vfio_ioctls.add(call, count));
}

/// What the control socket tells of a function.
pub fn device_info((slot, function): &(u8, Arc<PassthroughFunction>)) -> DeviceInfo {
    let bar = |bar: &Bar| BarInfo {
        index: bar.index.number(),
        size: bar.size,
        kind: match bar.kind {
            BarKind::Io => "io",
            BarKind::Memory32 => "memory32",
            BarKind::Memory64 => "memory64",
            BarKind::Rom => "rom",
        },
    };
    DeviceInfo {
        address: function.address().to_string(),
        guest_address: format!("0000:00:{slot:02x}.0"),
        bars: function.bars().iter().map(bar).collect(),
    }
}

fn link(container: &Container, host: &KvmHost) -> Result<(), Error> {
    let link = host.link().map_err(Error::system("KVM_CREATE_DEVICE(VFIO)"))?;
    Ok(container.link(link)?)
}

/// The assigned functions of one VM, with their slots on its bus, in the order of the command line.
#[derive(Clone, Default)]
pub struct Functions(Vec<(u8, Arc<PassthroughFunction>)>);

impl Functions {
    /// Each with its slot.
    pub fn iter(&self) -> impl Iterator<Item = &(u8, Arc<PassthroughFunction>)> {
        self.0.iter()
    }

    /// The BARs that need a place.
    pub fn bars(&self) -> Vec<BarRequest> {
        self.iter().flat_map(|(_, function)| bar_requests(function)).collect()
    }

    /// Places each BAR, as firmware does: nothing is decoded yet.
    pub fn place_bars(&self, layout: &Layout) -> Result<(), Error> {
        for (_, function) in self.iter() {
            let name = function.address().to_string();
            for placed in layout.bars.iter().filter(|bar| bar.request.function == name) {
                let index = BarIndex::new(placed.request.index);
                // No function of this VM has its registers written by a vCPU yet: no effects to carry out.
                index.map(|index| function.place_bar(index, placed.address)).transpose()?;
            }
        }
        Ok(())
    }

    /// Their addresses in the host.
    pub fn addresses(&self) -> Vec<String> {
        self.iter().map(|(_, function)| function.address().to_string()).collect()
    }

    /// Takes the devices from the guest: after this they do no DMA and signal no interrupt.
    ///
    /// All are taken, whatever fails; the first failure is reported.
    pub fn shutdown(&self) -> Result<(), Error> {
        let results: Vec<_> = self.iter().map(|(_, function)| function.shutdown()).collect();
        Ok(results.into_iter().collect::<Result<(), _>>()?)
    }

    /// Adds what was counted to `stats`.
    pub fn count(&self, stats: &Stats) {
        for (_, function) in self.iter() {
            let name = function.address().to_string();
            function.traps().values().for_each(|(what, count)| stats.trapped(&name, what, count));
        }
    }
}

/// The devices that are asked for: addresses, sysfs folders or links to such.
pub(crate) fn addresses(asked: &[Passthrough], handed: &Handed) -> Result<Vec<PciAddress>, Error> {
    let mut addresses = Vec::with_capacity(asked.len());
    for passthrough in asked {
        let address = match (&passthrough.path, passthrough.group) {
            (Some(path), _) => address(path)?,
            (None, Some(fd)) => only_device(fd, handed, &Sysfs::default())?,
            (None, None) => continue,
        };
        if addresses.contains(&address) {
            return Err(Error::DeviceTwice(address));
        }
        addresses.push(address);
    }
    Ok(addresses)
}

/// The device of a group that has no other.
fn only_device(fd: RawFd, handed: &Handed, sysfs: &Sysfs) -> Result<PciAddress, Error> {
    let no_group = "it is not a VFIO group's\n  a shell passes that of group 7 so: vmm --vfio fd=3 3<>/dev/vfio/7";
    let group = handed.look(fd).and_then(|file| sysfs.group_of(file));
    let group = group.ok_or_else(|| Error::handed("--vfio", fd, no_group))?;
    let mut members = sysfs.members(group);
    // A bridge is not given away.
    members.retain(|member| sysfs.is_vfio(*member));
    match members.as_slice() {
        [only] => Ok(*only),
        _ => {
            let names: Vec<_> = members.iter().map(PciAddress::to_string).collect();
            let names = names.join(", ");
            let why = format!(
                "group {group} has of vfio-pci's: {names}\n  name one: --vfio ADDRESS,fd={fd}"
            );
            Err(Error::handed("--vfio", fd, why))
        }
    }
}

/// The device that an address, a sysfs folder, or a link to one names.
pub(crate) fn address(path: &Path) -> Result<PciAddress, ParsePciAddressError> {
    if let Ok(address) = PciAddress::from_sysfs_path(path) {
        return Ok(address);
    }
    // A link such as /sys/class/nvme/nvme0/device names the device only by where it leads.
    let folder = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    PciAddress::from_sysfs_path(&folder)
}

fn bar_requests(function: &PassthroughFunction) -> Vec<BarRequest> {
    let request = |bar: &Bar| {
        let space = match bar.kind {
            BarKind::Io => BarSpace::Io,
            BarKind::Memory32 => BarSpace::Memory32,
            BarKind::Memory64 => BarSpace::Memory64,
            // The guest places it if it wants it: most never do.
            BarKind::Rom => return None,
        };
        let function = function.address().to_string();
        Some(BarRequest { function, index: bar.index.number(), size: bar.size, space })
    };
    function.bars().iter().filter_map(request).collect()
}

#[cfg(all(test, shuttle))]
mod interleavings;
#[cfg(test)]
mod tests;
