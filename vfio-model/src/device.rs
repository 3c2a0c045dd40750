//! Device files, and drivers that come and go.

use std::io;
use std::ops::Range;

use vfio_bindings::bindings::vfio as sys;

use crate::PciAddress;
use crate::events::Event;
use crate::files::Kind;
use crate::info::{Capabilities, Reply, word};
use crate::irqs::{self, IrqSet, Irqs};
use crate::{Driver, Fd, State, errno, regions};

/// What there is of a device beyond its description.
#[derive(Debug, Default)]
pub(crate) struct Device {
    pub irqs: Irqs,
    /// While it is being taken from vfio-pci: how often the user was asked for it.
    leaving: Option<u32>,
}

/// The sizes of `struct vfio_region_info` and `struct vfio_irq_info`.
const REGION_INFO: usize = 32;
const IRQ_INFO: usize = 16;

impl State {
    pub fn device_of(&self, fd: Fd) -> io::Result<PciAddress> {
        match self.files.kind(fd)? {
            Kind::Device(address) => Ok(address),
            _ => self.foreign(fd),
        }
    }

    pub fn entry(&self, address: PciAddress) -> io::Result<&super::describe::Entry> {
        let entry = self.description.functions.get(&address);
        entry.ok_or_else(|| errno(libc::ENODEV))
    }

    pub fn device_info(&self, fd: Fd, buffer: &mut [u8]) -> io::Result<()> {
        let entry = self.entry(self.device_of(fd)?)?;
        let kernel = self.description.kernel;
        let mut reply = Reply::begin(buffer, 16, kernel.device_info_size(), kernel)?;
        let reset = match entry.function.resets {
            true => sys::VFIO_DEVICE_FLAGS_RESET,
            false => 0,
        };
        reply.put_u32(4, sys::VFIO_DEVICE_FLAGS_PCI | reset);
        let regions = u32::try_from(entry.function.regions.len()).unwrap_or(u32::MAX);
        reply.put_u32(8, regions.max(sys::VFIO_PCI_NUM_REGIONS));
        reply.put_u32(12, sys::VFIO_PCI_NUM_IRQS);
        reply.write();
        Ok(())
    }

    pub fn region_info(&self, fd: Fd, buffer: &mut [u8]) -> io::Result<()> {
        let entry = self.entry(self.device_of(fd)?)?;
        let index = word(buffer, 8);
        let mut reply = Reply::begin(buffer, REGION_INFO, REGION_INFO, self.description.kernel)?;
        let region = entry.function.regions.get(index as usize);
        let region = region.ok_or_else(|| errno(libc::EINVAL))?;
        reply.put_u32(4, region.flags);
        reply.put_u64(16, region.size);
        reply.put_u64(24, regions::position(index, 0));
        let mut capabilities = Capabilities::new(self.description.kernel.aligns_capabilities());
        if let Some(areas) = &region.sparse {
            capabilities.add(sys::VFIO_REGION_INFO_CAP_SPARSE_MMAP, &sparse(areas));
        }
        if region.msix_mappable {
            capabilities.add(sys::VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, &[]);
        }
        reply.finish(&capabilities, REGION_INFO, sys::VFIO_REGION_INFO_FLAG_CAPS, 12);
        Ok(())
    }

    pub fn irq_info(&self, fd: Fd, buffer: &mut [u8]) -> io::Result<()> {
        let entry = self.entry(self.device_of(fd)?)?;
        let index = word(buffer, 8);
        let mut reply = Reply::begin(buffer, IRQ_INFO, IRQ_INFO, self.description.kernel)?;
        let is_there = index != sys::VFIO_PCI_ERR_IRQ_INDEX || entry.function.express;
        if index >= sys::VFIO_PCI_NUM_IRQS || !is_there {
            return Err(errno(libc::EINVAL));
        }
        reply.put_u32(4, irqs::flags(index, self.description.kernel, &entry.function));
        reply.put_u32(12, entry.function.vectors(index));
        reply.write();
        Ok(())
    }

    pub fn set_irqs(&mut self, fd: Fd, set: &IrqSet) -> io::Result<()> {
        let address = self.device_of(fd)?;
        let vectors = self.entry(address)?.function.vectors(set.index);
        irqs::validate(set, vectors, sys::VFIO_PCI_NUM_IRQS)?;
        let device = self.devices.entry(address).or_default();
        device.irqs.set(set, self.description.kernel, &self.files)?;
        self.look_at_pin(address);
        self.look_at_pending(address)
    }

    /// A device is opened for the first time (`vfio_pci_core_enable`): it is as after power-on, and
    /// decodes.
    pub fn enable(&mut self, address: PciAddress) -> io::Result<()> {
        let hardware = self.hardware(address)?;
        hardware.power_on()?;
        hardware.enable();
        Ok(())
    }

    /// A file of the device is gone: with the last its interrupts are, and so is the device if it
    /// was wanted back.
    pub fn released(&mut self, address: PciAddress) {
        if self.files.exists(Kind::Device(address)) {
            return;
        }
        if let Ok(hardware) = self.hardware(address) {
            // vfio_pci_core_disable
            hardware.clear_master();
        }
        let device = self.devices.remove(&address);
        if device.is_some_and(|device| device.leaving.is_some()) {
            self.take(address);
        }
    }

    fn is_leaving(&self, address: PciAddress) -> bool {
        let device = self.devices.get(&address);
        device.is_some_and(|device| device.leaving.is_some())
    }

    pub fn can_be_opened(&self, address: PciAddress) -> bool {
        let is_open = self.files.exists(Kind::Device(address));
        !self.is_leaving(address) || is_open && self.description.kernel.opens_what_leaves()
    }

    /// vfio-pci gives up a device that nobody has open: true where that is done, and not waiting
    /// for the group.
    fn take(&mut self, address: PciAddress) -> bool {
        let Ok(group) = self.entry(address).map(|entry| entry.group) else {
            return true;
        };
        let stays = |(other, driver): (PciAddress, Driver)| {
            let waits = self.is_leaving(other) && !self.files.exists(Kind::Device(other));
            driver == Driver::Vfio && other != address && !waits
        };
        let is_last = !self.members(group).any(stays);
        let revokes = self.description.kernel.revokes_groups();
        if is_last && !revokes && self.memberships.contains_key(&group) {
            self.devices.entry(address).or_default().leaving.get_or_insert(0);
            return false;
        }
        self.set_driver(address, Driver::None);
        if is_last && revokes {
            self.files.revoke(group);
            if let Some(id) = self.memberships.remove(&group) {
                self.leave(id, group);
            }
        }
        true
    }

    /// A group has no container any more: drivers that waited for that give their devices up.
    pub fn finish_unbinds(&mut self, group: u32) {
        let waiting: Vec<_> = self
            .members(group)
            .map(|(address, _)| address)
            .filter(|address| {
                self.is_leaving(*address) && !self.files.exists(Kind::Device(*address))
            })
            .collect();
        for address in waiting {
            self.devices.remove(&address);
            self.set_driver(address, Driver::None);
        }
    }

    fn set_driver(&mut self, address: PciAddress, driver: Driver) {
        if let Some(entry) = self.description.functions.get_mut(&address) {
            entry.driver = driver;
        }
    }

    pub fn unbind(&mut self, address: PciAddress) -> io::Result<bool> {
        match self.entry(address)?.driver {
            Driver::None => return Err(errno(libc::ENODEV)),
            Driver::Vfio if !self.files.exists(Kind::Device(address)) => {
                return Ok(self.take(address));
            }
            Driver::Vfio => {}
            Driver::Stub | Driver::Bridge | Driver::Host => {
                self.set_driver(address, Driver::None);
                return Ok(true);
            }
        }
        self.devices.entry(address).or_default().leaving.get_or_insert(0);
        self.ask_for(address);
        Ok(false)
    }

    /// Asks the user for a device that is leaving, once more.
    pub fn ask_for(&mut self, address: PciAddress) -> u32 {
        if !self.files.exists(Kind::Device(address)) {
            return 0;
        }
        let device = self.devices.get_mut(&address);
        let Some((requests, event)) = device.and_then(|device| {
            let event = device.irqs.request.clone();
            device.leaving.as_mut().map(|requests| (requests, event))
        }) else {
            return 0;
        };
        *requests = requests.saturating_add(1);
        let requests = *requests;
        event.iter().for_each(Event::signal);
        requests
    }

    pub fn bind(&mut self, address: PciAddress, driver: Driver) -> io::Result<()> {
        let entry = self.entry(address)?;
        let (group, before) = (entry.group, entry.driver);
        if before != Driver::None {
            return Err(errno(libc::EBUSY));
        }
        if driver == Driver::Host && self.memberships.contains_key(&group) {
            let stops =
                "the kernel stops itself: a driver of the host's has a device of a group in use";
            return Err(match self.description.kernel.refuses_drivers() {
                true => errno(libc::EBUSY),
                false => io::Error::other(stops),
            });
        }
        self.set_driver(address, driver);
        Ok(())
    }
}

/// The body of `struct vfio_region_info_cap_sparse_mmap`: a count, a reserved word, and the areas.
fn sparse(areas: &[Range<u64>]) -> Vec<u8> {
    let words = areas.iter().flat_map(|area| [area.start, area.end.saturating_sub(area.start)]);
    let count = areas.len() as u64;
    [count.to_le()].into_iter().chain(words).flat_map(u64::to_ne_bytes).collect()
}
