//! Resets of a function, and of its bus with all functions on it.
//!
//! A reset gives config space its values at power-on. Linux restores its saved header afterwards
//! (`pci_restore_state`); a portable program relies on neither.

use std::collections::BTreeSet;
use std::io;

use crate::address::PciAddress;
use crate::describe::Driver;
use crate::errno::errno;
use crate::files::{Fd, Kind};
use crate::info::{argsz, put};
use crate::objects::Bound;
use crate::state::{State, System};

/// The sizes of `struct vfio_pci_hot_reset_info` and `struct vfio_pci_dependent_device`.
const HEADER: usize = 12;
const ENTRY: usize = 8;

/// `VFIO_PCI_HOT_RESET_FLAG_DEV_ID` and `VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED`.
const BY_ID: u32 = 1;
const ALL_OWNED: u32 = 2;

/// `VFIO_PCI_DEVID_OWNED` and `VFIO_PCI_DEVID_NOT_OWNED`.
const OWNED: u32 = 0;
const NOT_OWNED: u32 = u32::MAX;

impl System {
    /// `VFIO_DEVICE_RESET` (`vfio_pci_ioctl_reset`).
    ///
    /// # Errors
    ///
    /// `EINVAL`: the device has no function-level reset.
    pub fn reset(&self, device: Fd) -> io::Result<()> {
        let mut state = self.state();
        let address = state.device_of(device)?;
        match state.entry(address)?.function.resets {
            true => state.hardware(address)?.reset(),
            false => Err(errno(libc::EINVAL)),
        }
    }

    /// `VFIO_DEVICE_GET_PCI_HOT_RESET_INFO` (`vfio_pci_ioctl_get_pci_hot_reset_info`). The buffer
    /// holds `struct vfio_pci_hot_reset_info` and room for the functions. A device that is bound to
    /// an iommufd reports device numbers instead of groups, with flags.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: `argsz` is too small for the struct.
    /// - `ENODEV`: the bus cannot be reset.
    /// - `ENOSPC`: `argsz` is too small for the functions; the struct holds their number.
    pub fn hot_reset_info(&self, device: Fd, buffer: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        state.device_of(device)?;
        let room = argsz(buffer);
        if room < HEADER {
            return Err(errno(libc::EINVAL));
        }
        let members = state.bus(device)?;
        let count = u32::try_from(members.len()).unwrap_or(u32::MAX);
        put(buffer, 4, &0_u32.to_ne_bytes());
        put(buffer, 8, &count.to_ne_bytes());
        if room < members.len().saturating_mul(ENTRY).saturating_add(HEADER) {
            return Err(errno(libc::ENOSPC));
        }
        let (names, flags) = match state.binding(device) {
            Some(bound) => state.device_ids(&members, bound),
            None => (members.iter().map(|(_, group)| *group).collect(), 0),
        };
        let entries = members.iter().zip(names).flat_map(|((address, _), name)| {
            let [n0, n1, n2, n3] = name.to_ne_bytes();
            let [d0, d1] = address.segment().to_ne_bytes();
            [n0, n1, n2, n3, d0, d1, address.bus(), address.devfn()]
        });
        put(buffer, 4, &flags.to_ne_bytes());
        put(buffer, HEADER, &entries.collect::<Vec<_>>());
        Ok(())
    }

    /// `VFIO_DEVICE_PCI_HOT_RESET` (`vfio_pci_ioctl_pci_hot_reset`), with the fds of groups for a
    /// device that was opened by its group, and without fds for one that is bound to an iommufd.
    ///
    /// # Errors
    ///
    /// - `EINVAL` in 6.12: the device takes fds and there are none, or takes none and there are
    ///   some.
    /// - `ENODEV`: the bus cannot be reset.
    /// - `EINVAL`: there is no fd, there are more fds than functions, an fd is no group, or a
    ///   function on the bus is not vfio-pci's, or neither in one of the groups nor the iommufd's.
    /// - `EBADF`: an fd is not open.
    pub fn hot_reset(&self, device: Fd, groups: &[Fd]) -> io::Result<()> {
        let mut state = self.state();
        state.device_of(device)?;
        let bound = state.binding(device);
        if groups.is_empty() != bound.is_some() && state.description.kernel.counts_fds_first() {
            return Err(errno(libc::EINVAL));
        }
        let members = state.bus(device)?;
        match bound {
            Some(bound) => state.check_owned(&members, bound)?,
            None => state.check_groups(&members, groups)?,
        }
        members.iter().try_for_each(|(address, _)| state.hardware(*address)?.reset())
    }
}

fn is_by_cdev(bound: &Bound) -> bool {
    bound.cdev.is_some()
}

impl State {
    /// Checks that a hot reset affects only functions of these groups.
    fn check_groups(&self, members: &[(PciAddress, u32)], groups: &[Fd]) -> io::Result<()> {
        if groups.is_empty() || groups.len() > members.len() {
            return Err(errno(libc::EINVAL));
        }
        let groups = groups.iter().map(|group| match self.files.kind(*group)? {
            Kind::Group(group) => Ok(group),
            _ => Err(errno(libc::EINVAL)),
        });
        let groups = groups.collect::<io::Result<BTreeSet<u32>>>()?;
        for (address, group) in members {
            if self.entry(*address)?.driver != Driver::Vfio || !groups.contains(group) {
                return Err(errno(libc::EINVAL));
            }
        }
        Ok(())
    }

    /// Checks that a hot reset affects only functions of the iommufd.
    fn check_owned(&self, members: &[(PciAddress, u32)], bound: Bound) -> io::Result<()> {
        match self.device_ids(members, bound).0.contains(&NOT_OWNED) {
            true => Err(errno(libc::EINVAL)),
            false => Ok(()),
        }
    }

    /// The bind of a device's file.
    fn binding(&self, fd: Fd) -> Option<Bound> {
        match self.files.kind(fd) {
            Ok(Kind::Cdev(address, _)) => self.devices.get(&address)?.bound.filter(is_by_cdev),
            _ => None,
        }
    }

    /// The numbers of functions in an iommufd, and the flags of the reply
    /// (`vfio_pci_fill_devs`).
    fn device_ids(&self, members: &[(PciAddress, u32)], of: Bound) -> (Vec<u32>, u32) {
        let id = |(address, group): &(PciAddress, u32)| {
            let bound = self.devices.get(address).and_then(|device| device.bound);
            let is_vfio = self.entry(*address).is_ok_and(|entry| entry.driver == Driver::Vfio);
            match bound.filter(|bound| bound.iommufd == of.iommufd) {
                Some(bound) => bound.id,
                None if is_vfio && self.bound_in(*group).any(|b| b.iommufd == of.iommufd) => OWNED,
                None => NOT_OWNED,
            }
        };
        let ids: Vec<u32> = members.iter().map(id).collect();
        let flags = match ids.contains(&NOT_OWNED) {
            true => BY_ID,
            false => BY_ID | ALL_OWNED,
        };
        (ids, flags)
    }

    /// The functions on a device's bus, with their groups: ENODEV where the bus cannot be reset.
    fn bus(&self, fd: Fd) -> io::Result<Vec<(PciAddress, u32)>> {
        let address = self.device_of(fd)?;
        let bus = self.description.buses.iter().find(|bus| bus.contains(&address));
        let members = bus.ok_or_else(|| errno(libc::ENODEV))?.iter();
        members.map(|member| Ok((*member, self.entry(*member)?.group))).collect()
    }
}
