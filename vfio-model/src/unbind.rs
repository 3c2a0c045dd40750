//! Drivers that leave a device and drivers that bind to it.

use std::io;

use crate::address::PciAddress;
use crate::describe::Driver;
use crate::errno::errno;
use crate::events::Event;
use crate::files::Kind;
use crate::state::{State, System};

impl System {
    /// Root writes to `driver/unbind`. Returns whether the driver has left the device.
    ///
    /// vfio-pci cannot leave an open device: it signals the request interrupt, and leaves after the
    /// last fd is closed (`vfio_unregister_group_dev`). In 5.4 the last device of a group also
    /// waits until the group has no container.
    ///
    /// # Errors
    ///
    /// `ENODEV`: the device does not exist or has no driver.
    pub fn unbind(&self, device: PciAddress) -> io::Result<bool> {
        let mut state = self.state();
        match state.entry(device)?.driver {
            Driver::None => return Err(errno(libc::ENODEV)),
            Driver::Vfio if !state.is_open(device) => return Ok(state.remove(device)),
            Driver::Vfio => {}
            Driver::Stub | Driver::Bridge | Driver::Host => {
                state.set_driver(device, Driver::None);
                return Ok(true);
            }
        }
        state.devices.entry(device).or_default().requests.get_or_insert(0);
        state.request(device);
        Ok(false)
    }

    /// The kernel requests an open device once more, as it does every 10 s while vfio-pci waits
    /// (`vfio_pci_core_request`). Returns the number of requests; 0 for a device that is not
    /// requested.
    pub fn request_again(&self, device: PciAddress) -> u32 {
        self.state().request(device)
    }

    /// Binds a driver to a device that has none.
    ///
    /// # Errors
    ///
    /// - `ENODEV`: the device does not exist.
    /// - `EBUSY`: the device has a driver; or the driver is the host's, and the group has a
    ///   container or a device that is bound to an iommufd (`iommu_device_use_default_domain`).
    /// - An error without an errno: Linux 5.4 would stop with `BUG` (`vfio_group_nb_verify`).
    pub fn bind(&self, device: PciAddress, driver: Driver) -> io::Result<()> {
        let mut state = self.state();
        let entry = state.entry(device)?;
        if entry.driver != Driver::None {
            return Err(errno(libc::EBUSY));
        }
        let is_owned = state.memberships.contains_key(&entry.group)
            || state.bound_in(entry.group).next().is_some();
        if driver == Driver::Host && is_owned {
            return Err(match state.description.kernel.refuses_drivers() {
                true => errno(libc::EBUSY),
                false => io::Error::other("BUG: a driver of the host binds to a group in use"),
            });
        }
        state.set_driver(device, driver);
        Ok(())
    }

    /// The driver of a device; `None` for a device that does not exist.
    pub fn driver(&self, device: PciAddress) -> Option<Driver> {
        self.state().entry(device).ok().map(|entry| entry.driver)
    }

    /// Whether a file of a device is open.
    pub fn is_open(&self, device: PciAddress) -> bool {
        self.state().is_open(device)
    }
}

impl State {
    fn is_open(&self, address: PciAddress) -> bool {
        let mut kinds = self.files.kinds();
        kinds.any(|kind| match kind {
            Kind::Device(device) | Kind::Cdev(device, _) => device == address,
            _ => false,
        })
    }

    /// Whether a file gives access to the device: one of its group, or a character device's that
    /// is bound.
    fn is_in_use(&self, address: PciAddress) -> bool {
        let device = self.devices.get(&address);
        let bound = device.and_then(|device| device.bound);
        let is_bound = bound.is_some_and(|bound| bound.cdev.is_some());
        self.files.exists(Kind::Device(address)) || is_bound
    }

    fn is_leaving(&self, address: PciAddress) -> bool {
        self.devices.get(&address).is_some_and(|device| device.requests.is_some())
    }

    /// Whether vfio-pci waits for the group of a device that it leaves.
    fn waits_for_group(&self, address: PciAddress) -> bool {
        self.is_leaving(address) && !self.is_open(address)
    }

    pub fn can_be_opened(&self, address: PciAddress) -> bool {
        let kernel = self.description.kernel;
        !self.is_leaving(address) || self.is_open(address) && kernel.opens_what_leaves()
    }

    fn set_driver(&mut self, address: PciAddress, driver: Driver) {
        if let Some(entry) = self.description.functions.get_mut(&address) {
            entry.driver = driver;
        }
    }

    /// A file of the device was closed. After the last that gave access, its interrupts are freed
    /// (`vfio_pci_core_disable`). After the last of all, vfio-pci leaves the device if it was
    /// requested.
    pub fn device_closed(&mut self, address: PciAddress) {
        if self.is_in_use(address) {
            return;
        }
        if let Ok(hardware) = self.hardware(address) {
            hardware.clear_master();
        }
        self.unbind_iommufd(address);
        let requests = self.devices.remove(&address).and_then(|device| device.requests);
        if requests.is_none() {
            return;
        }
        match self.is_open(address) {
            true => self.devices.entry(address).or_default().requests = requests,
            false => drop(self.remove(address)),
        }
    }

    /// vfio-pci leaves a device that is not open (`vfio_pci_remove`); false where it has to wait
    /// for the group.
    fn remove(&mut self, address: PciAddress) -> bool {
        let Ok(group) = self.entry(address).map(|entry| entry.group) else {
            return true;
        };
        let stays = |(other, driver): (PciAddress, Driver)| {
            driver == Driver::Vfio && other != address && !self.waits_for_group(other)
        };
        let is_last = !self.members(group).any(stays);
        let revokes = self.description.kernel.revokes_groups();
        if is_last && !revokes && self.memberships.contains_key(&group) {
            self.devices.entry(address).or_default().requests.get_or_insert(0);
            return false;
        }
        self.set_driver(address, Driver::None);
        if is_last && revokes {
            self.files.revoke(group);
            self.leave_iommufd(group);
            if let Some(id) = self.memberships.remove(&group) {
                self.detach_group(id, group);
            }
        }
        true
    }

    /// The group has no container any more: vfio-pci leaves the devices that waited for that.
    pub fn finish_unbinds(&mut self, group: u32) {
        let members = self.members(group).map(|(address, _)| address);
        let waiting: Vec<_> = members.filter(|address| self.waits_for_group(*address)).collect();
        for address in waiting {
            self.devices.remove(&address);
            self.set_driver(address, Driver::None);
        }
    }

    fn request(&mut self, address: PciAddress) -> u32 {
        let is_open = self.is_open(address);
        let device = self.devices.get_mut(&address).filter(|_| is_open);
        let Some(device) = device else {
            return 0;
        };
        let Some(requests) = &mut device.requests else {
            return 0;
        };
        *requests = requests.saturating_add(1);
        device.irqs.request.iter().for_each(Event::signal);
        *requests
    }
}
