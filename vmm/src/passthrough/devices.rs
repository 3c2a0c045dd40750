//! The devices of `--vfio`, opened in one container.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use devices::DevFn;
use vfio_passthrough::backend::sysfs::Sysfs;
use vfio_passthrough::context::{AssignedDevice, DeviceOptions, PreparedDevice};
use vfio_passthrough::counters::VfioCalls;
use vfio_passthrough::kvm::KvmHost;
use vfio_passthrough::{
    DmaSpace, IommuContext, PassthroughFunction, PciAddress, ResetPolicy, VmmServices,
};

use super::addition::{Addition, NewDevice};
use super::functions::{Functions, Placed};
use super::iommu;
use super::places::{Candidate, places};
use super::side_by_side::side_by_side;
use crate::config::{Config, Passthrough};
use crate::error::Error;
use crate::guest::boot::intx_gsi;
use crate::host::passed_fds::PassedFds;

/// The open assigned devices and their shared I/O address space. They stay open while the guest
/// reboots. Dropping the value closes the devices side by side: the kernel resets each (100 ms).
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

/// The requested devices, before they are opened.
pub(crate) struct Requested<'a> {
    devices: Devices,
    prepared: Vec<(Request<'a>, PreparedDevice)>,
    /// The error of the first device that could not be prepared.
    failed: Result<(), Error>,
}

impl<'a> Requested<'a> {
    /// Prepares the requested devices, for one address space that is linked to the VM of `host`;
    /// `None` if no device is requested.
    pub(crate) fn prepare(
        config: &'a Config,
        addresses: &[PciAddress],
        mut passed: PassedFds,
        host: &KvmHost,
    ) -> Result<Option<Self>, Error> {
        if config.vfio.is_empty() {
            return Ok(None);
        }
        let sysfs = Sysfs::default();
        let physical = addresses.iter().map(|own| sysfs.physical_function(*own)).collect();
        let requests = requests((&config.vfio, addresses), physical, &[])?;
        let container = iommu::open(config, addresses, &mut passed)?;
        link(&container, host)?;
        let devices = Devices { container, opened: Vec::new() };
        let mut prepared = Vec::with_capacity(requests.len());
        let failed = requests.into_iter().try_for_each(|request| {
            let device = request.prepare(&devices.container, &mut passed)?;
            prepared.push((request, device));
            Ok(())
        });
        Ok(Some(Self { devices, prepared, failed }))
    }

    /// Whether all devices were prepared. Otherwise the start ends with an error.
    pub(crate) fn is_complete(&self) -> bool {
        self.failed.is_ok()
    }

    /// The I/O address space, if memory can be mapped before the devices are opened. iommufd pins
    /// memory when the first device is attached, so that there it would gain nothing.
    pub(crate) fn dma(&self) -> Option<DmaSpace> {
        let container = &self.devices.container;
        (!container.is_iommufd()).then(|| container.dma().clone())
    }

    /// Opens the devices side by side. The error is that of the first one, in the order of the
    /// command line; devices after one that could not be prepared are not opened.
    ///
    /// Each thread drops its clone of `waits` when it is about to open its device. Threads that use
    /// much CPU time wait for that, so that all resets begin at once.
    pub(crate) fn open(self, waits: Sender<()>) -> Result<Devices, Error> {
        let Self { mut devices, prepared, failed } = self;
        devices.open_prepared(prepared, waits)?;
        failed.map(|()| devices)
    }
}

impl Devices {
    fn open_prepared(
        &mut self,
        prepared: Vec<(Request<'_>, PreparedDevice)>,
        waits: Sender<()>,
    ) -> Result<(), Error> {
        let addresses: Vec<_> = prepared.iter().map(|(own, _)| own.candidate.address).collect();
        // A physical function gets its VF token before virtual functions are opened with it.
        let (late, first): (Vec<_>, Vec<_>) =
            prepared.into_iter().partition(|(request, _)| request.needs_first(&addresses));
        self.open_all(first, waits)?;
        self.open_all(late, channel().0)?;
        self.opened.sort_by_key(|opened| opened.index);
        Ok(())
    }

    fn open_all(
        &mut self,
        prepared: Vec<(Request<'_>, PreparedDevice)>,
        waits: Sender<()>,
    ) -> Result<(), Error> {
        let with_waits = prepared.into_iter().map(|own| (own, waits.clone())).collect();
        drop(waits);
        let mut result = Ok(());
        let opened = side_by_side(with_waits, |((request, device), waits)| {
            drop(waits);
            request.open(device)
        });
        for opened in opened {
            match opened {
                Ok(opened) => self.opened.push(opened),
                Err(error) => result = result.and(Err(error)),
            }
        }
        result
    }

    /// Links the container to the VM of `host`.
    pub(crate) fn link(&self, host: &KvmHost) -> Result<(), Error> {
        link(&self.container, host)
    }

    /// Creates the functions in their power-on state, in the VM of `host`. A device that was
    /// detached in an earlier life of the guest has no function.
    pub(crate) fn functions(&self, host: &KvmHost) -> Result<Functions, Error> {
        let function = |opened: &Opened| self.placed(opened, host);
        let remaining = self.opened.iter().filter(|opened| !opened.device.is_closed());
        Functions::make(remaining, function)
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

    /// Opens further devices, and makes their functions in the VM of `host`, all or none. `finish`
    /// is the last step that can fail.
    pub(crate) fn add<M>(
        &mut self,
        addition: Addition,
        host: &KvmHost,
        taken: &[u8],
        finish: impl FnOnce(&DmaSpace, &Functions) -> Result<M, Error>,
    ) -> Result<(Functions, M), Error> {
        let before = self.opened.len();
        let added = self.open_added(addition, taken).and_then(|()| {
            let added = self.opened.get(before..).unwrap_or_default();
            let functions = Functions::make(added, |own| self.placed(own, host))?;
            let finished = finish(self.dma(), &functions)?;
            Ok((functions, finished))
        });
        added.inspect_err(|_| drop(side_by_side(self.opened.split_off(before), drop)))
    }

    fn open_added(&mut self, addition: Addition, taken: &[u8]) -> Result<(), Error> {
        if addition.is_iommufd != self.container.is_iommufd() {
            return Err(Error::OtherKind { is: self.iommu() });
        }
        let addresses: Vec<_> = addition.devices.iter().map(|new| new.address).collect();
        self.check_new(&addresses)?;
        let asked: Vec<_> = addition.devices.iter().map(|new| new.asked.clone()).collect();
        let physical: Vec<_> = addition.devices.iter().map(NewDevice::physical).collect();
        let requests = requests((&asked, &addresses), physical, taken)?;
        let first = self.opened.len();
        let mut prepared = Vec::with_capacity(requests.len());
        for (mut request, new) in requests.into_iter().zip(addition.devices) {
            request.index = request.index.saturating_add(first);
            let (file, vf_token) = (new.node, new.asked.vf_token);
            let options = DeviceOptions { file, vf_token, sysfs: Some(new.sysfs) };
            prepared.push((request, self.container.prepare_device(new.address, options)?));
        }
        // Nothing else waits for them.
        self.open_prepared(prepared, channel().0)
    }

    /// No device comes twice.
    fn check_new(&self, addresses: &[PciAddress]) -> Result<(), Error> {
        let own: BTreeSet<_> = self.opened.iter().map(|opened| opened.address).collect();
        let mut asked = BTreeSet::new();
        for address in addresses.iter().copied() {
            match (own.contains(&address), asked.insert(address)) {
                (true, _) => return Err(Error::AlreadyAssigned { address }),
                (false, false) => return Err(Error::DeviceTwice(address)),
                (false, true) => {}
            }
        }
        Ok(())
    }

    fn placed(&self, opened: &Opened, host: &KvmHost) -> Result<Placed, Error> {
        let p2p = self.peers(opened.address);
        let host = VmmServices { p2p, ..host.services_with_intx(opened.gsi()?) };
        Ok((opened.place, Arc::new(opened.function(&host)?)))
    }

    /// Forgets a closed device, and returns whether it was the last.
    pub(crate) fn remove(&mut self, address: PciAddress) -> bool {
        self.opened.retain(|opened| opened.address != address);
        self.opened.is_empty()
    }

    /// The space in which other devices access the BARs of a device: `None` if there is no other
    /// device, or if the user does not want it.
    pub(crate) fn peers(&self, address: PciAddress) -> Option<DmaSpace> {
        let asked = self.opened.iter().any(|own| own.address == address && own.p2p);
        (asked && self.opened.len() > 1).then(|| self.container.dma().clone())
    }

    /// The I/O address space.
    pub(crate) fn dma(&self) -> &DmaSpace {
        self.container.dma()
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

impl Drop for Devices {
    fn drop(&mut self) {
        // A device whose function still has it is closed with the function.
        side_by_side(std::mem::take(&mut self.opened), drop);
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
    /// The physical function, if the device is a virtual function.
    physical: Option<PciAddress>,
}

impl Request<'_> {
    fn prepare(
        &self,
        container: &IommuContext,
        passed: &mut PassedFds,
    ) -> Result<PreparedDevice, Error> {
        let file = self.asked.file.map(|fd| passed.remove(fd)).transpose()?;
        let options = DeviceOptions { file, vf_token: self.asked.vf_token, sysfs: None };
        Ok(container.prepare_device(self.candidate.address, options)?)
    }

    /// Whether one of the other devices is opened first: the physical function that gets the VF
    /// token.
    fn needs_first(&self, others: &[PciAddress]) -> bool {
        self.physical.is_some_and(|physical| others.contains(&physical))
    }

    fn open(self, device: PreparedDevice) -> Result<Opened, Error> {
        Ok(Opened {
            index: self.index,
            place: self.place,
            multifunction: self.multifunction,
            address: self.candidate.address,
            device: device.open()?,
            reset: self.asked.reset,
            p2p: self.asked.p2p,
        })
    }
}

/// The requested devices with their places on the guest's bus.
fn requests<'a>(
    (asked, addresses): (&'a [Passthrough], &[PciAddress]),
    physical: Vec<Option<PciAddress>>,
    taken: &[u8],
) -> Result<Vec<Request<'a>>, Error> {
    let candidate = |((asked, address), is_virtual): ((&Passthrough, &PciAddress), bool)| {
        Candidate { address: *address, is_virtual, at: asked.at }
    };
    let are_virtual = physical.iter().map(Option::is_some);
    let candidates: Vec<_> = asked.iter().zip(addresses).zip(are_virtual).map(candidate).collect();
    let places = places(&candidates, taken.iter().copied())?;
    let all = candidates.into_iter().zip(&places).zip(asked).zip(physical).enumerate();
    let requests = all.map(|(index, (((candidate, place), asked), physical))| {
        let multifunction = has_others(*place, &places);
        Request { index, candidate, place: *place, multifunction, asked, physical }
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
