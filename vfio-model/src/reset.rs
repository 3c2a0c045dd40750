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
use crate::state::{State, System};

/// The sizes of `struct vfio_pci_hot_reset_info` and `struct vfio_pci_dependent_device`.
const HEADER: usize = 12;
const ENTRY: usize = 8;

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
    /// holds `struct vfio_pci_hot_reset_info` and room for the functions.
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
        put(buffer, 8, &count.to_ne_bytes());
        if room < members.len().saturating_mul(ENTRY).saturating_add(HEADER) {
            return Err(errno(libc::ENOSPC));
        }
        let entries = members.iter().flat_map(|(address, group)| {
            let [g0, g1, g2, g3] = group.to_ne_bytes();
            let [d0, d1] = address.segment().to_ne_bytes();
            [g0, g1, g2, g3, d0, d1, address.bus(), address.devfn()]
        });
        put(buffer, HEADER, &entries.collect::<Vec<_>>());
        Ok(())
    }

    /// `VFIO_DEVICE_PCI_HOT_RESET` with the fds of groups (`vfio_pci_ioctl_pci_hot_reset`).
    ///
    /// # Errors
    ///
    /// - `ENODEV`: the bus cannot be reset.
    /// - `EINVAL`: there is no fd, there are more fds than functions, an fd is no group, or a
    ///   function on the bus is not vfio-pci's or not in one of the groups.
    pub fn hot_reset(&self, device: Fd, groups: &[Fd]) -> io::Result<()> {
        let mut state = self.state();
        let members = state.bus(device)?;
        if groups.is_empty() || groups.len() > members.len() {
            return Err(errno(libc::EINVAL));
        }
        let groups = groups.iter().map(|group| match state.files.kind(*group)? {
            Kind::Group(group) => Ok(group),
            _ => Err(errno(libc::EINVAL)),
        });
        let groups = groups.collect::<io::Result<BTreeSet<u32>>>()?;
        for (address, group) in &members {
            if state.entry(*address)?.driver != Driver::Vfio || !groups.contains(group) {
                return Err(errno(libc::EINVAL));
            }
        }
        members.iter().try_for_each(|(address, _)| state.hardware(*address)?.reset())
    }
}

impl State {
    /// The functions on a device's bus, with their groups: ENODEV where the bus cannot be reset.
    fn bus(&self, fd: Fd) -> io::Result<Vec<(PciAddress, u32)>> {
        let address = self.device_of(fd)?;
        let bus = self.description.buses.iter().find(|bus| bus.contains(&address));
        let members = bus.ok_or_else(|| errno(libc::ENODEV))?.iter();
        members.map(|member| Ok((*member, self.entry(*member)?.group))).collect()
    }
}
