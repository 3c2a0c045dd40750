//! The assigned devices of a guest, which can change while it runs, and the RAM that they access.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use resources::AddressRange;
use vfio_passthrough::counters::VfioCalls;
use vfio_passthrough::dma::Mapping;
use vfio_passthrough::kvm::KvmHost;
use vfio_passthrough::{DmaSpace, PciAddress};

use super::addition::{Addition, NewDevice};
use super::devices::Devices;
use super::functions::Functions;
use super::mapping;
use super::side_by_side::meanwhile;
use crate::error::Error;
use crate::guest::memory::Ram;
use crate::host::limits::RunningLimits;

/// The assigned devices. Without devices nothing is pinned.
pub(crate) struct Assigned {
    ram: Ram,
    limits: RunningLimits,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    // Drop order: the devices are closed before RAM is unmapped.
    devices: Option<Devices>,
    _mappings: Vec<Mapping>,
}

impl Assigned {
    /// The devices of the start, with the mappings of all of `ram`. Later devices are within
    /// `limits`.
    pub(crate) fn new(
        devices: Option<Devices>,
        mappings: Vec<Mapping>,
        ram: &Ram,
        limits: RunningLimits,
    ) -> Self {
        let state = Mutex::new(State { devices, _mappings: mappings });
        Self { ram: ram.clone(), limits, state }
    }

    /// What a device that comes needs of the limits of this process.
    pub(crate) fn limits(&self) -> &RunningLimits {
        &self.limits
    }

    /// Links the devices to the VM of `host`.
    pub(crate) fn link(&self, host: &KvmHost) -> Result<(), Error> {
        self.lock().devices.iter().try_for_each(|devices| devices.link(host))
    }

    /// The functions of all devices in their power-on state, in the VM of `host`.
    pub(crate) fn functions(&self, host: &KvmHost) -> Result<Functions, Error> {
        let state = self.lock();
        state.devices.as_ref().map_or_else(|| Ok(Functions::default()), |own| own.functions(host))
    }

    /// The kernel's interface for the devices, as `--iommu` names it; `None` without devices.
    pub(crate) fn iommu(&self) -> Option<&'static str> {
        self.lock().devices.as_ref().map(Devices::iommu)
    }

    /// The counters of VFIO calls.
    pub(crate) fn calls(&self) -> Option<Arc<VfioCalls>> {
        self.lock().devices.as_ref().map(Devices::calls)
    }

    /// Opens devices and makes their functions, all or none, if they pass `check`. The first device
    /// maps all of RAM.
    pub(crate) fn add(
        &self,
        mut addition: Addition,
        (host, taken): (&KvmHost, &[u8]),
        check: impl FnOnce(&Functions) -> Result<(), Error>,
    ) -> Result<Functions, Error> {
        let mut state = self.lock();
        addition.devices.iter().try_for_each(|device| self.check_ram(device))?;
        if let Some(own) = &mut state.devices {
            return Ok(own.add(addition, host, taken, |_, functions| check(functions))?.0);
        }
        let mut first = Devices::first(&mut addition, host)?;
        let map = |dma: &DmaSpace, functions: &Functions| {
            check(functions)?;
            mapping::map(dma, &self.ram, |bytes| self.limits.check_locked(bytes))
        };
        let (functions, mappings) = first.add(addition, host, taken, map)?;
        *state = State { devices: Some(first), _mappings: mappings };
        Ok(functions)
    }

    /// Forgets a device, which is closed. The last one unmaps RAM.
    pub(crate) fn remove(&self, address: PciAddress) {
        let mut state = self.lock();
        if state.devices.as_mut().is_some_and(|devices| devices.remove(address)) {
            *state = State::default();
        }
    }

    /// The space in which devices access the BARs of a function by DMA: see [`Devices::peers`].
    pub(crate) fn peers(&self, address: PciAddress, conventional: bool) -> Option<DmaSpace> {
        self.lock().devices.as_ref().and_then(|devices| devices.peers(address, conventional))
    }

    /// Closes the devices, and meanwhile unmaps and frees RAM, and destroys the VM.
    pub(crate) fn close(self, ram: Ram) {
        let Self { ram: own, state, .. } = self;
        let State { devices, _mappings: mappings } =
            state.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(devices) = devices {
            let vm = devices.unlink();
            let (waits, all_close) = channel::<()>();
            let free = move || {
                // Freeing RAM takes a CPU: the resets begin before, and need none.
                let _ = all_close.recv();
                drop((mappings, ram, own, vm));
            };
            meanwhile(free, move || devices.close(waits));
        }
    }

    /// RAM must not be where the device's group reserves addresses.
    fn check_ram(&self, device: &NewDevice) -> Result<(), Error> {
        let group = device.sysfs.group(device.address);
        let regions = group.map(|group| device.sysfs.reserved_regions(group)).unwrap_or_default();
        let taken = regions.iter().filter(|region| region.is_taken());
        for region in taken {
            let range = AddressRange::new(region.range.start(), region.range.size());
            if self.ram.ranges().any(|ram| ram.overlaps(&range)) {
                let (address, kind) = (device.address, region.kind);
                return Err(Error::ReservedRam { address, range, kind });
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use vfio_passthrough::backend::sysfs::{Entry, Sysfs};

    use super::*;

    /// A device in group 7, which has these reserved regions.
    fn device(regions: &str) -> NewDevice {
        let address: PciAddress = "0000:01:00.0".parse().unwrap();
        let folder = format!("bus/pci/devices/{address}");
        let entries = [
            (format!("{folder}/iommu_group"), Entry::Link("../../7".into())),
            ("kernel/iommu_groups/7/reserved_regions".into(), Entry::File(regions.into())),
        ];
        let sysfs = Sysfs::of_copy(entries.map(|(path, entry)| (path.into(), entry)));
        NewDevice { address, asked: "01:00.0".parse().unwrap(), node: None, sysfs }
    }

    fn assigned() -> Assigned {
        let ram = Ram::new(&[AddressRange::new(0, 64 << 20)]).unwrap();
        Assigned::new(None, Vec::new(), &ram, RunningLimits::default())
    }

    #[test]
    fn a_device_whose_group_reserves_addresses_of_ram_is_refused() {
        let assigned = assigned();
        let allowed = "0x0 0xffffff direct-relaxable\n0xfee00000 0xfeefffff msi\n";
        assigned.check_ram(&device(allowed)).unwrap();
        let error = assigned.check_ram(&device("0x1000000 0x10fffff direct\n")).unwrap_err();
        let expected = "0000:01:00.0: the guest's RAM lies at 0x1000000-0x10fffff, which its IOMMU \
                        group reserves (direct): only a guest that starts with the device has its \
                        RAM elsewhere";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn without_devices_there_is_no_interface_and_nothing_to_remove() {
        let assigned = assigned();
        assigned.remove("0000:01:00.0".parse().unwrap());
        assert!(assigned.iommu().is_none() && assigned.calls().is_none());
        assert!(assigned.peers("0000:01:00.0".parse().unwrap(), true).is_none());
    }
}
