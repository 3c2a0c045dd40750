//! Resets: of a function, and of its bus with all that is on it (`vfio_pci_ioctl_reset`,
//! `vfio_pci_ioctl_get_pci_hot_reset_info`, `vfio_pci_ioctl_pci_hot_reset`).
//!
//! A reset gives config space its values at power-on. Linux writes what it saved of the header back
//! afterwards: a program that works with either does not count on it.

use std::collections::BTreeSet;
use std::io;

use crate::files::Kind;
use crate::info::{argsz, put};
use crate::{Driver, Fd, PciAddress, State, System, errno};

/// The sizes of `struct vfio_pci_hot_reset_info` and `struct vfio_pci_dependent_device`.
const HEADER: usize = 12;
const ENTRY: usize = 8;

impl System {
    /// `VFIO_DEVICE_RESET`: EINVAL for a device that cannot be reset by itself.
    pub fn reset(&self, device: Fd) -> io::Result<()> {
        let mut state = self.state();
        let address = state.device_of(device)?;
        match state.entry(address)?.function.resets {
            true => state.hardware(address)?.power_on(),
            false => Err(errno(libc::EINVAL)),
        }
    }

    /// `VFIO_DEVICE_GET_PCI_HOT_RESET_INFO`, on `struct vfio_pci_hot_reset_info` and the room
    /// behind it: ENODEV where the bus cannot be reset, ENOSPC with the number of functions where
    /// there is too little room.
    pub fn hot_reset_info(&self, device: Fd, buffer: &mut [u8]) -> io::Result<()> {
        self.state().hot_reset_info(device, buffer)
    }

    /// `VFIO_DEVICE_PCI_HOT_RESET`, with the files of groups: ENODEV where the bus cannot be reset,
    /// EINVAL where a function on it is not vfio-pci's or its group's file is not among them.
    pub fn hot_reset(&self, device: Fd, groups: &[Fd]) -> io::Result<()> {
        self.state().hot_reset(device, groups)
    }
}

impl State {
    /// What a reset of a device's bus reaches, with their groups.
    fn bus(&self, fd: Fd) -> io::Result<Vec<(PciAddress, u32)>> {
        let address = self.device_of(fd)?;
        let mut buses = self.description.buses.iter();
        let bus = buses.find(|bus| bus.contains(&address));
        let members = bus.ok_or_else(|| errno(libc::ENODEV))?.iter();
        members.map(|member| Ok((*member, self.entry(*member)?.group))).collect()
    }

    fn hot_reset_info(&self, fd: Fd, buffer: &mut [u8]) -> io::Result<()> {
        self.device_of(fd)?;
        let room = argsz(buffer);
        if room < HEADER {
            return Err(errno(libc::EINVAL));
        }
        let members = self.bus(fd)?;
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

    fn hot_reset(&mut self, fd: Fd, groups: &[Fd]) -> io::Result<()> {
        let members = self.bus(fd)?;
        if groups.is_empty() || groups.len() > members.len() {
            return Err(errno(libc::EINVAL));
        }
        let shown = groups.iter().map(|group| match self.files.kind(*group)? {
            Kind::Group(group) => Ok(group),
            _ => Err(errno(libc::EINVAL)),
        });
        let shown = shown.collect::<io::Result<BTreeSet<u32>>>()?;
        for (address, group) in &members {
            if self.entry(*address)?.driver != Driver::Vfio || !shown.contains(group) {
                return Err(errno(libc::EINVAL));
            }
        }
        members.iter().try_for_each(|(address, _)| self.hardware(*address)?.power_on())
    }
}
