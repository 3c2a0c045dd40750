//! Device files: their info ioctls.

use std::io;
use std::ops::Range;

use vfio_bindings::bindings::vfio as sys;

use crate::address::PciAddress;
use crate::describe::Entry;
use crate::errno::errno;
use crate::files::{Fd, Kind};
use crate::hardware::{Hardware, position};
use crate::info::{Capabilities, Reply, word};
use crate::irqs;
use crate::state::{State, System};

/// The sizes of `struct vfio_region_info` and `struct vfio_irq_info`.
const REGION_INFO: usize = 32;
const IRQ_INFO: usize = 16;

impl System {
    /// `VFIO_DEVICE_GET_INFO` (`vfio_pci_ioctl_get_info`). The buffer holds
    /// `struct vfio_device_info`.
    ///
    /// # Errors
    ///
    /// `EINVAL`: `argsz` is too small.
    pub fn device_info(&self, device: Fd, buffer: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        let entry = state.entry(state.device_of(device)?)?;
        let kernel = state.description.kernel;
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

    /// `VFIO_DEVICE_GET_REGION_INFO` (`vfio_pci_ioctl_get_region_info`). The buffer holds
    /// `struct vfio_region_info` and room for capabilities.
    ///
    /// # Errors
    ///
    /// `EINVAL`: `argsz` is too small, or the device has no such region.
    pub fn region_info(&self, device: Fd, buffer: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        let entry = state.entry(state.device_of(device)?)?;
        let index = word(buffer, 8);
        let mut reply = Reply::begin(buffer, REGION_INFO, REGION_INFO, state.description.kernel)?;
        let region = entry.function.regions.get(index as usize);
        let region = region.ok_or_else(|| errno(libc::EINVAL))?;
        reply.put_u32(4, region.flags);
        reply.put_u64(16, region.size);
        reply.put_u64(24, position(index, 0));
        let mut capabilities = Capabilities::new(state.description.kernel.aligns_capabilities());
        if let Some(areas) = &region.sparse {
            capabilities.add(sys::VFIO_REGION_INFO_CAP_SPARSE_MMAP, &sparse(areas));
        }
        if region.msix_mappable {
            capabilities.add(sys::VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, &[]);
        }
        reply.finish(&capabilities, REGION_INFO, sys::VFIO_REGION_INFO_FLAG_CAPS, 12);
        Ok(())
    }

    /// `VFIO_DEVICE_GET_IRQ_INFO` (`vfio_pci_ioctl_get_irq_info`). The buffer holds
    /// `struct vfio_irq_info`.
    ///
    /// # Errors
    ///
    /// `EINVAL`: `argsz` is too small, or the device has no such index.
    pub fn irq_info(&self, device: Fd, buffer: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        let entry = state.entry(state.device_of(device)?)?;
        let index = word(buffer, 8);
        let kernel = state.description.kernel;
        let mut reply = Reply::begin(buffer, IRQ_INFO, IRQ_INFO, kernel)?;
        let exists =
            index != sys::VFIO_PCI_ERR_IRQ_INDEX || entry.function.has_error_interrupt(kernel);
        if index >= sys::VFIO_PCI_NUM_IRQS || !exists {
            return Err(errno(libc::EINVAL));
        }
        reply.put_u32(4, irqs::flags(index, &state.description, &entry.function));
        reply.put_u32(12, entry.function.vectors(index, kernel));
        reply.write();
        Ok(())
    }
}

/// The body of `struct vfio_region_info_cap_sparse_mmap`: a count, a reserved word, and the areas.
fn sparse(areas: &[Range<u64>]) -> Vec<u8> {
    let words = areas.iter().flat_map(|area| [area.start, area.end.saturating_sub(area.start)]);
    let count = areas.len() as u64;
    [count.to_le()].into_iter().chain(words).flat_map(u64::to_ne_bytes).collect()
}

impl State {
    /// The device of a file that gives access to it: EINVAL for a character device that is not
    /// bound.
    pub fn device_of(&self, fd: Fd) -> io::Result<PciAddress> {
        match self.files.kind(fd)? {
            Kind::Device(address) => Ok(address),
            Kind::Cdev(address, cdev) if self.has_access(address, cdev) => Ok(address),
            _ => self.unknown_ioctl(fd),
        }
    }

    /// The description of a device: ENODEV where the device does not exist.
    pub fn entry(&self, address: PciAddress) -> io::Result<&Entry> {
        self.description.functions.get(&address).ok_or_else(|| errno(libc::ENODEV))
    }

    /// A device's hardware, made at its first use.
    pub fn hardware(&mut self, address: PciAddress) -> io::Result<&mut Hardware> {
        let entry = self.description.functions.get(&address);
        let function = &entry.ok_or_else(|| errno(libc::ENODEV))?.function;
        let hardware = self.hardware.entry(address);
        Ok(hardware.or_insert_with(|| Hardware::new(function)))
    }

    /// Opens a device for the first time: it is as after power-on, and decodes
    /// (`vfio_pci_core_enable`).
    pub fn enable(&mut self, address: PciAddress) -> io::Result<()> {
        let hardware = self.hardware(address)?;
        hardware.power_on()?;
        hardware.enable();
        Ok(())
    }
}
