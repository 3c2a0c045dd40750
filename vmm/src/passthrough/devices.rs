//! The devices of `--vfio`, opened in one container.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use devices::DevFn;
use vfio_passthrough::context::{AssignedDevice, DeviceOptions, PreparedDevice};
use vfio_passthrough::counters::VfioCalls;
use vfio_passthrough::host::GroupLink;
use vfio_passthrough::kvm::KvmHost;
use vfio_passthrough::{
    DmaSpace, IommuContext, PassthroughFunction, PciAddress, ResetPolicy, VmmServices,
};

use super::addition::Addition;
use super::functions::{Functions, Placed};
use super::iommu::{self, Found};
use super::places::{Candidate, places};
use super::side_by_side::side_by_side;
use crate::config::{Config, Passthrough};
use crate::error::Error;
use crate::guest::arch::{intx_gsi, msi_router};
use crate::host::passed_fds::PassedFds;

/// The open assigned devices and their shared I/O address space. They stay open while the guest
/// reboots. Dropping the value closes the devices side by side: the kernel resets each (100 ms).
pub(crate) struct Devices {
    container: IommuContext,
    opened: Vec<Opened>,
}

struct Opened {
    /// The number of its option on the command line, among the devices that came with it.
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
    /// Prepares the requested devices, for one address space; `None` if no device is requested.
    pub(crate) fn prepare(
        config: &'a Config,
        addresses: &[PciAddress],
        mut passed: PassedFds,
    ) -> Result<Option<Self>, Error> {
        if config.vfio.is_empty() {
            return Ok(None);
        }
        let found = iommu::found(addresses);
        let requests = requests(&config.vfio, &found, &[])?;
        let (container, nodes) = iommu::open(config, &found, &mut passed)?;
        let devices = Devices { container, opened: Vec::new() };
        let mut prepared = Vec::with_capacity(requests.len());
        let mut nodes = nodes.into_iter();
        let failed = requests.into_iter().try_for_each(|request| {
            let device = request.prepare(&devices.container, (&mut passed, nodes.next()))?;
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
        let before = self.opened.len();
        let addresses: Vec<_> = prepared.iter().map(|(own, _)| own.candidate.address).collect();
        // A physical function gets its VF token before virtual functions are opened with it.
        let (late, first): (Vec<_>, Vec<_>) =
            prepared.into_iter().partition(|(request, _)| request.needs_first(&addresses));
        self.open_all(first, waits)?;
        self.open_all(late, channel().0)?;
        let new = self.opened.get_mut(before..).unwrap_or_default();
        new.sort_by_key(|opened| opened.index);
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

    /// Links the devices with the VM of `host`.
    ///
    /// A device that is opened while it is linked holds that VM until it is closed
    /// (vfio_device_get_kvm_safe), also after a reboot. No driver of VFIO for PCI devices on
    /// x86-64 or aarch64 needs the VM earlier, so the devices are opened first.
    pub(crate) fn link(&self, host: &KvmHost) -> Result<(), Error> {
        let link = host.link().map_err(Error::system("KVM_CREATE_DEVICE(VFIO)"))?;
        Ok(self.container.link(link)?)
    }

    /// Ends the links with the VM. The drop of the returned value destroys the VM, unless something
    /// else has it.
    pub(crate) fn unlink(&self) -> Option<Arc<dyn GroupLink>> {
        self.container.unlink()
    }

    /// Creates the functions in their power-on state, in the VM of `host`. A device that was
    /// detached in an earlier life of the guest has no function.
    pub(crate) fn functions(&self, host: &KvmHost) -> Result<Functions, Error> {
        let function = |opened: &Opened| self.placed(opened, host);
        let remaining = self.opened.iter().filter(|opened| !opened.device.is_closed());
        Functions::make(remaining, function)
    }

    /// Opens the first devices of a running guest, in the address space that the request brings.
    /// They are linked before they are opened, like all that come later.
    pub(crate) fn first(addition: &mut Addition, host: &KvmHost) -> Result<Self, Error> {
        let file = addition.context.take().ok_or(Error::NoContainer)?;
        let container = match addition.is_iommufd {
            true => IommuContext::open_iommufd_by(file)?,
            false => IommuContext::open_by(file)?,
        };
        let first = Self { container, opened: Vec::new() };
        first.link(host)?;
        Ok(first)
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
        let found: Vec<Found> =
            addition.devices.iter().map(|new| (new.address, new.physical())).collect();
        self.check_new(&found)?;
        let asked: Vec<_> = addition.devices.iter().map(|new| new.asked.clone()).collect();
        let requests = requests(&asked, &found, taken)?;
        let mut prepared = Vec::with_capacity(requests.len());
        for (request, new) in requests.into_iter().zip(addition.devices) {
            let (file, vf_token) = (new.node, new.asked.vf_token);
            let options = DeviceOptions { file, node: None, vf_token, sysfs: Some(new.sysfs) };
            prepared.push((request, self.container.prepare_device(new.address, options)?));
        }
        // Nothing else waits for them.
        self.open_prepared(prepared, channel().0)
    }

    /// No device comes twice.
    fn check_new(&self, found: &[Found]) -> Result<(), Error> {
        let own: BTreeSet<_> = self.opened.iter().map(|opened| opened.address).collect();
        let mut asked = BTreeSet::new();
        for (address, _) in found.iter().copied() {
            match (own.contains(&address), asked.insert(address)) {
                (true, _) => return Err(Error::AlreadyAssigned { address }),
                (false, false) => return Err(Error::DeviceTwice(address)),
                (false, true) => {}
            }
        }
        Ok(())
    }

    fn placed(&self, opened: &Opened, host: &KvmHost) -> Result<Placed, Error> {
        let msi = msi_router(host, opened.place);
        let services = VmmServices { msi, ..host.services_with_intx(opened.gsis()) };
        let function = opened.function(&services)?;
        function.set_peers(self.peers(opened.address, function.is_conventional()))?;
        Ok((opened.place, Arc::new(function)))
    }

    /// Forgets a closed device, and returns whether it was the last.
    pub(crate) fn remove(&mut self, address: PciAddress) -> bool {
        self.opened.retain(|opened| opened.address != address);
        self.opened.is_empty()
    }

    /// The space in which devices access the BARs of a function by DMA: `None` if the user does not
    /// want it, or if no device would: there is no other one, and a function of PCI Express does
    /// not access its own BARs.
    pub(crate) fn peers(&self, address: PciAddress, conventional: bool) -> Option<DmaSpace> {
        let is_asked = self.opened.iter().any(|own| own.address == address && own.p2p);
        let dma = self.dma();
        match (is_asked, self.opened.len() > 1, conventional) {
            (true, true, _) => Some(dma.clone()),
            (true, false, true) => Some(dma.without_warnings()),
            _ => None,
        }
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

impl Devices {
    /// Closes the devices side by side. Each thread drops its clone of `waits` when it is about to
    /// close its device, like [`Requested::open`].
    pub(crate) fn close(mut self, waits: Sender<()>) {
        let opened = std::mem::take(&mut self.opened);
        let with_waits = opened.into_iter().map(|own| (own, waits.clone())).collect();
        drop(waits);
        side_by_side(with_waits, |(opened, waits)| {
            drop(waits);
            drop(opened);
        });
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        // A device whose function still has it is closed with the function.
        side_by_side(std::mem::take(&mut self.opened), drop);
    }
}

impl Opened {
    /// The GSIs of the slot's interrupt pins, which also a guest finds by slot and pin.
    fn gsis(&self) -> [u32; 4] {
        [0, 1, 2, 3].map(|pin| intx_gsi(self.place.slot(), pin))
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
        (passed, node): (&mut PassedFds, Option<PathBuf>),
    ) -> Result<PreparedDevice, Error> {
        let file = self.asked.file.map(|fd| passed.remove(fd)).transpose()?;
        let options = DeviceOptions { file, node, vf_token: self.asked.vf_token, sysfs: None };
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
    asked: &'a [Passthrough],
    found: &[Found],
    taken: &[u8],
) -> Result<Vec<Request<'a>>, Error> {
    let candidate = |(asked, (address, physical)): (&Passthrough, &Found)| Candidate {
        address: *address,
        is_virtual: physical.is_some(),
        at: asked.at,
    };
    let candidates: Vec<_> = asked.iter().zip(found).map(candidate).collect();
    let places = places(&candidates, taken.iter().copied())?;
    let all = candidates.into_iter().zip(&places).zip(asked).zip(found).enumerate();
    let requests = all.map(|(index, (((candidate, place), asked), (_, physical)))| {
        let multifunction = has_others(*place, &places);
        Request { index, candidate, place: *place, multifunction, asked, physical: *physical }
    });
    Ok(requests.collect())
}

/// Whether a slot has functions besides that at `place`.
fn has_others(place: DevFn, places: &[DevFn]) -> bool {
    places.iter().any(|other| *other != place && other.slot() == place.slot())
}
