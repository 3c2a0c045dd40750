//! Device fds, drivers that come and go, and the events that tell of it.

use std::collections::BTreeMap;
use std::io;

use vfio_bindings::bindings::vfio as sys;

use super::files::Kind;
use super::info::{Capabilities, Reply, word};
use super::irqs::{self, IrqSet, Irqs};
use super::{Driver, Fd, State, errno};
use crate::address::PciAddress;

/// What there is of a device beyond its description.
#[derive(Debug, Default)]
pub(super) struct Device {
    pub irqs: Irqs,
    /// While it is being taken from vfio-pci: how often the user was asked for it.
    leaving: Option<u32>,
}

/// Offsets of regions in a device's file: the index is above these bits.
const INDEX_SHIFT: u32 = 40;

/// The sizes of `struct vfio_region_info` and `struct vfio_irq_info`.
const REGION_INFO: usize = 32;
const IRQ_INFO: usize = 16;

impl State {
    fn device_of(&self, fd: Fd) -> io::Result<PciAddress> {
        match self.files.kind(fd)? {
            Kind::Device(address) => Ok(address),
            _ => self.foreign(fd),
        }
    }

    fn entry(&self, address: PciAddress) -> io::Result<&super::describe::Entry> {
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
        reply.put_u64(24, u64::from(index) << INDEX_SHIFT);
        let mut capabilities = Capabilities::new(self.description.kernel.aligns_capabilities());
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
        device
            .irqs
            .set(set, self.description.kernel, &self.files, &mut self.events)
    }

    pub fn reset(&self, fd: Fd) -> io::Result<()> {
        match self.entry(self.device_of(fd)?)?.function.resets {
            true => Ok(()),
            false => Err(errno(libc::EINVAL)),
        }
    }

    /// A file of the device is gone: with the last its interrupts are, and so is the device if it was wanted back.
    pub fn released(&mut self, address: PciAddress) {
        if self.files.exists(Kind::Device(address)) {
            return;
        }
        let leaving = self
            .devices
            .remove(&address)
            .is_some_and(|device| device.leaving.is_some());
        if leaving {
            self.set_driver(address, Driver::None);
        }
    }

    pub fn can_be_opened(&self, address: PciAddress) -> bool {
        let leaving = self
            .devices
            .get(&address)
            .is_some_and(|device| device.leaving.is_some());
        !leaving || self.description.kernel.opens_what_leaves()
    }

    fn set_driver(&mut self, address: PciAddress, driver: Driver) {
        if let Some(entry) = self.description.functions.get_mut(&address) {
            entry.driver = driver;
        }
    }

    pub fn unbind(&mut self, address: PciAddress) -> io::Result<bool> {
        if self.entry(address)?.driver == Driver::None {
            return Err(errno(libc::ENODEV));
        }
        if !self.files.exists(Kind::Device(address)) {
            self.set_driver(address, Driver::None);
            return Ok(true);
        }
        self.devices.entry(address).or_default().leaving.get_or_insert(0);
        self.ask_for(address);
        Ok(false)
    }

    /// Asks the user for a device that is leaving, once more.
    pub fn ask_for(&mut self, address: PciAddress) -> u32 {
        let device = self.devices.get_mut(&address);
        let Some((requests, event)) = device.and_then(|device| {
            let event = device.irqs.request();
            device.leaving.as_mut().map(|requests| (requests, event))
        }) else {
            return 0;
        };
        *requests = requests.saturating_add(1);
        let requests = *requests;
        event.into_iter().for_each(|event| self.events.signal(event));
        requests
    }

    pub fn bind(&mut self, address: PciAddress, driver: Driver) -> io::Result<()> {
        let entry = self.entry(address)?;
        let (group, before) = (entry.group, entry.driver);
        if before != Driver::None {
            return Err(errno(libc::EBUSY));
        }
        if driver == Driver::Host && self.memberships.contains_key(&group) {
            let stops = "the kernel stops itself: a driver of the host's has a device of a group in use";
            return Err(match self.description.kernel.refuses_drivers() {
                true => errno(libc::EBUSY),
                false => io::Error::other(stops),
            });
        }
        self.set_driver(address, driver);
        Ok(())
    }

    /// A file was linked with a KVM, or is so no more: drivers that wait for it are told, later ones will be.
    pub fn tell_of_kvm(&mut self, kind: Kind, kvm: Option<Fd>) {
        let Kind::Group(group) = kind else {
            return;
        };
        match kvm {
            Some(kvm) => drop(self.notices.kvms.insert(group, kvm)),
            None => drop(self.notices.kvms.remove(&group)),
        }
        let waiting = self
            .notices
            .waiting
            .values_mut()
            .filter(|notice| notice.group == group);
        waiting.for_each(|notice| notice.told.push(kvm));
    }

    pub fn register_notifier(&mut self, address: PciAddress, events: u64) -> io::Result<u64> {
        const SET_KVM: u64 = 1;
        let group = self.entry(address)?.group;
        if events != SET_KVM {
            return Err(errno(libc::EINVAL));
        }
        self.use_container(group).map_err(|_| errno(libc::EINVAL))?;
        let told = self.notices.kvms.get(&group).map(|kvm| Some(*kvm));
        let id = self.notices.next;
        self.notices.next = id.wrapping_add(1);
        let notice = Notice {
            group,
            told: told.into_iter().collect(),
        };
        self.notices.waiting.insert(id, notice);
        Ok(id)
    }
}

/// Who is told when a KVM is linked with a group.
#[derive(Debug, Default)]
pub(super) struct Notices {
    /// The last KVM of each group.
    pub kvms: BTreeMap<u32, Fd>,
    pub waiting: BTreeMap<u64, Notice>,
    next: u64,
}

/// What a driver was told.
#[derive(Debug)]
pub(super) struct Notice {
    group: u32,
    pub told: Vec<Option<Fd>>,
}
