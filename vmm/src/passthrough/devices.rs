//! The devices of `--vfio`, opened in one container.

use std::sync::Arc;

use devices::DevFn;
use resources::AddressRange;
use vfio_passthrough::backend::sysfs::Sysfs;
use vfio_passthrough::context::{AssignedDevice, DeviceOptions};
use vfio_passthrough::counters::VfioCalls;
use vfio_passthrough::dma::{Mapping, allow_locked_memory};
use vfio_passthrough::host::HostMemory;
use vfio_passthrough::kvm::KvmHost;
use vfio_passthrough::{
    DmaSpace, IommuContext, Iova, PassthroughFunction, PciAddress, ResetPolicy, VmmServices,
};
use vm_memory::GuestMemoryRegion;

use super::addition::{Addition, NewDevice};
use super::functions::{Functions, Placed};
use super::iommu;
use super::places::{Candidate, places};
use crate::config::{Config, Passthrough};
use crate::error::Error;
use crate::guest::boot::intx_gsi;
use crate::guest::memory::Ram;
use crate::host::passed_fds::PassedFds;

/// The open assigned devices and their shared I/O address space. They stay open while the guest
/// reboots.
pub(crate) struct Devices {
    container: IommuContext,
    opened: Vec<Opened>,
}

struct Opened {
    /// The number of its option on the command line.
    index: usize,
    /// The place on the guest's bus.
    place: DevFn,
    /// Whether the guest's device has other functions.
    multifunction: bool,
    address: PciAddress,
    device: Arc<AssignedDevice>,
    reset: ResetPolicy,
    p2p: bool,
}

impl Devices {
    /// Opens the requested devices in one address space that is linked to the VM of `host`; `None` if
    /// no device is requested.
    pub(crate) fn open(
        config: &Config,
        addresses: &[PciAddress],
        mut passed: PassedFds,
        host: &KvmHost,
    ) -> Result<Option<Self>, Error> {
        let asked = &config.vfio;
        if asked.is_empty() {
            return Ok(None);
        }
        let mut requests = requests(&config.vfio, addresses)?;
        let container = iommu::open(config, addresses, &mut passed)?;
        link(&container, host)?;
        // A physical function gets its VF token before virtual functions are opened with it.
        requests.sort_by_key(|request| request.candidate.is_virtual);
        let open = |request: &Request<'_>| request.open(&container, &mut passed);
        let mut opened = requests.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        opened.sort_by_key(|opened| opened.index);
        Ok(Some(Self { container, opened }))
    }

    /// Links the container to the VM of `host`.
    pub(crate) fn link(&self, host: &KvmHost) -> Result<(), Error> {
        link(&self.container, host)
    }

    /// Creates the functions in their power-on state, in the VM of `host`. A device that was
    /// detached in an earlier life of the guest has no function.
    pub(crate) fn functions(&self, host: &KvmHost) -> Result<Functions, Error> {
        let others = self.opened.len() > 1;
        let function = |opened: &Opened| self.placed(opened, others, host);
        let remaining = self.opened.iter().filter(|opened| !opened.device.is_closed());
        Ok(Functions::new(remaining.map(function).collect::<Result<_, _>>()?))
    }

    /// Opens the first devices of a running guest, in the address space that the request brings.
    pub(crate) fn first(addition: &mut Addition, host: &KvmHost) -> Result<Self, Error> {
        let file = addition.context.take().ok_or(Error::NoContainer)?;
        let container = match addition.is_iommufd {
            true => IommuContext::open_iommufd_by(file)?,
            false => IommuContext::open_by(file)?,
        };
        link(&container, host)?;
        Ok(Self { container, opened: Vec::new() })
    }

    /// Opens further devices, and makes their functions in the VM of `host`, all or none. `map` maps
    /// RAM between the two.
    pub(crate) fn add<M>(
        &mut self,
        addition: Addition,
        host: &KvmHost,
        taken: &[u8],
        map: impl FnOnce(&Self) -> Result<M, Error>,
    ) -> Result<(Vec<Placed>, M), Error> {
        if addition.is_iommufd != self.container.is_iommufd() {
            return Err(Error::OtherKind { is: self.iommu() });
        }
        let opened = self.open_new(addition.devices, taken)?;
        let mapped = map(self)?;
        let others = self.opened.len().saturating_add(opened.len()) > 1;
        let functions = opened.iter().map(|own| self.placed(own, others, host));
        let functions = functions.collect::<Result<Vec<_>, _>>()?;
        self.opened.extend(opened);
        Ok((functions, mapped))
    }

    fn open_new(&self, new: Vec<NewDevice>, taken: &[u8]) -> Result<Vec<Opened>, Error> {
        let mut own = self.opened.iter().map(|opened| opened.address);
        let addresses: Vec<_> = new.iter().map(|new| new.address).collect();
        let repeated = (1..addresses.len()).find(|index| {
            let (before, rest) = addresses.split_at(*index);
            rest.first().is_some_and(|first| before.contains(first))
        });
        let repeated = repeated.and_then(|index| addresses.get(index));
        if let Some(twice) = own.find(|own| addresses.contains(own)).or(repeated.copied()) {
            return Err(Error::DeviceTwice(twice));
        }
        let candidates: Vec<_> = new.iter().map(NewDevice::candidate).collect();
        let places = places(&candidates, taken.iter().copied())?;
        let first = self.opened.len();
        let open = |(index, (new, place)): (usize, (NewDevice, &DevFn))| {
            let index = first.saturating_add(index);
            let (address, asked) = (new.address, new.asked);
            let (file, vf_token) = (new.node, asked.vf_token);
            let options = DeviceOptions { file, vf_token, sysfs: Some(new.sysfs) };
            Ok(Opened {
                index,
                place: *place,
                multifunction: has_others(*place, &places),
                address,
                device: self.container.open_device_with(address, options)?,
                reset: asked.reset,
                p2p: asked.p2p,
            })
        };
        new.into_iter().zip(&places).enumerate().map(open).collect()
    }

    fn placed(&self, opened: &Opened, others: bool, host: &KvmHost) -> Result<Placed, Error> {
        // Peer-to-peer DMA needs a second device.
        let p2p = (others && opened.p2p).then(|| self.container.dma().clone());
        let host = VmmServices { p2p, ..host.services_with_intx(opened.gsi()?) };
        Ok((opened.place, Arc::new(opened.function(&host)?)))
    }

    /// Forgets a closed device, and returns whether it was the last.
    pub(crate) fn remove(&mut self, address: PciAddress) -> bool {
        self.opened.retain(|opened| opened.address != address);
        self.opened.is_empty()
    }

    /// The space in which other devices access the BARs of the only device: `None` if there is one
    /// device, or if its user does not want it.
    pub(crate) fn peers(&self, address: PciAddress) -> Option<DmaSpace> {
        let asked = self.opened.iter().any(|own| own.address == address && own.p2p);
        (asked && self.opened.len() > 1).then(|| self.container.dma().clone())
    }

    /// The IOVA ranges that the IOMMU can map.
    pub(crate) fn apertures(&self) -> Result<Vec<AddressRange>, Error> {
        let ranges = self.container.dma().iova_ranges()?;
        Ok(ranges.iter().map(|range| AddressRange::new(range.start(), range.size())).collect())
    }

    /// Maps all of `ram` for DMA, which pins it; maps all regions or none.
    pub(crate) fn map(&self, ram: &Ram) -> Result<Vec<Mapping>, Error> {
        self.allow_locked_memory(ram)?;
        let memory = ram.regions().iter().map(|region| {
            let memory: Arc<dyn HostMemory> = region.clone();
            (Iova(region.start_addr().0), memory)
        });
        Ok(self.container.dma().map_all(memory)?)
    }

    /// Groups that cannot share a container pin the memory once for each container. The limit was
    /// checked for one before the devices were opened.
    fn allow_locked_memory(&self, ram: &Ram) -> Result<(), Error> {
        let spaces = self.container.dma().address_spaces();
        if spaces > 1 {
            let sizes = ram.regions().iter().map(|region| region.len());
            let size = sizes.fold(0, u64::saturating_add);
            allow_locked_memory(size.saturating_mul(spaces as u64))?;
        }
        Ok(())
    }

    /// The kernel's interface for the devices, as `--iommu` names it.
    pub(crate) fn iommu(&self) -> &'static str {
        if self.container.is_iommufd() { "iommufd" } else { "type1" }
    }

    /// The counters of VFIO calls.
    pub(crate) fn calls(&self) -> Arc<VfioCalls> {
        Arc::clone(self.container.calls())
    }
}

impl Opened {
    /// The GSI of the function's interrupt pin, which also a guest finds by slot and pin.
    fn gsi(&self) -> Result<u32, Error> {
        let pin = PassthroughFunction::interrupt_pin(self.address, self.device.clone())?;
        // A function without a pin uses no line.
        Ok(intx_gsi(self.place.slot(), pin.saturating_sub(1)))
    }

    fn function(&self, services: &VmmServices) -> Result<PassthroughFunction, Error> {
        let device = self.device.clone();
        let function = PassthroughFunction::new(self.address, device, services, self.reset)?;
        Ok(if self.multifunction { function.with_multifunction() } else { function })
    }
}

/// A device to open.
struct Request<'a> {
    index: usize,
    candidate: Candidate,
    place: DevFn,
    multifunction: bool,
    asked: &'a Passthrough,
}

impl Request<'_> {
    fn open(&self, container: &IommuContext, passed: &mut PassedFds) -> Result<Opened, Error> {
        let (asked, address) = (self.asked, self.candidate.address);
        let file = asked.file.map(|fd| passed.remove(fd)).transpose()?;
        let options = DeviceOptions { file, vf_token: asked.vf_token, sysfs: None };
        Ok(Opened {
            index: self.index,
            place: self.place,
            multifunction: self.multifunction,
            address,
            device: container.open_device_with(address, options)?,
            reset: asked.reset,
            p2p: asked.p2p,
        })
    }
}

/// The requested devices with their places on the guest's bus.
fn requests<'a>(
    asked: &'a [Passthrough],
    addresses: &[PciAddress],
) -> Result<Vec<Request<'a>>, Error> {
    let sysfs = Sysfs::default();
    let candidate = |(asked, address): (&Passthrough, &PciAddress)| Candidate {
        address: *address,
        is_virtual: sysfs.physical_function(*address).is_some(),
        at: asked.at,
    };
    let candidates: Vec<_> = asked.iter().zip(addresses).map(candidate).collect();
    let places = places(&candidates, [])?;
    let all = candidates.into_iter().zip(&places).zip(asked).enumerate();
    let requests = all.map(|(index, ((candidate, place), asked))| {
        let multifunction = has_others(*place, &places);
        Request { index, candidate, place: *place, multifunction, asked }
    });
    Ok(requests.collect())
}

/// Whether a slot has functions besides that at `place`.
fn has_others(place: DevFn, places: &[DevFn]) -> bool {
    places.iter().any(|other| *other != place && other.slot() == place.slot())
}

fn link(container: &IommuContext, host: &KvmHost) -> Result<(), Error> {
    let link = host.link().map_err(Error::system("KVM_CREATE_DEVICE(VFIO)"))?;
    Ok(container.link(link)?)
}
