//! The reset of a bus as vfio-pci does it (vfio_pci_ioctl_get_pci_hot_reset_info, vfio_pci_ioctl_pci_hot_reset), which the
//! model has not.

use std::io;

use super::libc::{World, words};

/// The sizes of `struct vfio_pci_hot_reset_info`, also that of `struct vfio_pci_hot_reset`, and of `struct
/// vfio_pci_dependent_device`.
const HEADER: usize = 12;
const ENTRY: usize = 8;

/// What a reset of the bus reaches.
#[derive(Default)]
pub struct Bus {
    /// The group of each function, and the number of its bus, on which it is the first.
    pub members: Vec<(u32, u8)>,
    pub resets: u64,
}

impl World {
    pub fn bus_info(&self, argument: usize) -> io::Result<()> {
        let members = &self.bus.members;
        let [argsz, _, count] = words(argument);
        *count = members.len() as u32;
        if (*argsz as usize) < HEADER + ENTRY * members.len() {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        for (place, (group, bus)) in members.iter().enumerate() {
            // Behind the group: the domain's two bytes, the bus, and the number on it.
            *words(argument + HEADER + ENTRY * place) = [*group, u32::from(*bus) << 16];
        }
        Ok(())
    }

    /// Whoever resets must show the files of all groups that the reset reaches.
    pub fn reset_bus(&mut self, argument: usize) -> io::Result<()> {
        let [argsz, _, count] = *words(argument);
        let (argsz, count) = (argsz as usize, count as usize);
        let files = (0..count.min(argsz / 4)).map(|place| words(argument + HEADER + 4 * place));
        let shown: Vec<_> = files.map(|[file]| self.group(*file as i32)).collect();
        let is_shown = |group: &u32| shown.contains(&Some(*group));
        let members = &self.bus.members;
        if argsz < HEADER + 4 * count
            || count > members.len()
            || shown.contains(&None)
            || !members.iter().all(|(group, _)| is_shown(group))
        {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        self.bus.resets += 1;
        Ok(())
    }
}
