//! Reads, writes and mappings of the regions in a device's file (`vfio_pci_rw`,
//! `vfio_pci_core_mmap`).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vfio_bindings::bindings::vfio as sys;

use crate::address::PciAddress;
use crate::describe::Region;
use crate::errno::errno;
use crate::files::{Fd, Kind};
use crate::hardware::{Hardware, position, split_position};
use crate::process::PAGE;
use crate::state::{State, System};

/// Part of a region.
struct Place<'a> {
    index: u32,
    region: &'a Region,
    offset: u64,
    hardware: &'a mut Hardware,
}

impl System {
    /// `pread` of a device's file: the number of bytes that were read.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: the file is no device, or the offset is in no region.
    /// - `EFAULT`: the offset is beyond the end of config space.
    /// - `EIO`: the device does not decode its memory.
    pub fn read(&self, device: Fd, offset: u64, data: &mut [u8]) -> io::Result<usize> {
        self.state().place(device, offset)?.read(data)
    }

    /// `pwrite` of a device's file: the number of bytes that were written.
    ///
    /// # Errors
    ///
    /// The errors of [`read`](Self::read). `EINVAL`: the region is the ROM.
    pub fn write(&self, device: Fd, offset: u64, data: &[u8]) -> io::Result<usize> {
        let mut state = self.state();
        let written = state.place(device, offset)?.write(data)?;
        // The write may have cleared Interrupt Disable.
        let address = state.device_of(device)?;
        state.update_pin(address);
        Ok(written)
    }

    /// `mmap` of a device's file: the file that holds the device's memory, to be mapped at the same
    /// offset.
    ///
    /// The kernel removes the pages while the device [does not decode](Self::decodes_memory) its
    /// memory, so that an access raises SIGBUS (`vfio_pci_zap_bars`). The model's mapping stays.
    ///
    /// # Errors
    ///
    /// `EINVAL`: the file is no device, or the region has no such part or cannot be mapped.
    pub fn mmap(&self, device: Fd, offset: u64, size: u64) -> io::Result<Arc<File>> {
        self.state().place(device, offset)?.mmap(size)
    }

    /// States where the process mapped a file of [`mmap`](Self::mmap). A container maps such memory
    /// for DMA without locking it (`follow_fault_pfn`); iommufd refuses it with `EFAULT`. Addresses
    /// that are not stated are ordinary memory.
    pub fn mapped_at(&self, memory: Range<u64>) {
        self.state().process.map_device(memory);
    }

    /// `munmap`: the process unmaps these addresses, or maps ordinary memory there.
    pub fn munmap(&self, memory: &Range<u64>) {
        self.state().process.unmap(memory);
    }

    /// Whether a device decodes its memory regions: Memory Space is enabled, and the device is not
    /// in D3hot.
    pub fn decodes_memory(&self, device: PciAddress) -> bool {
        self.state().hardware(device).is_ok_and(|hardware| hardware.decodes_memory())
    }

    /// Whether a device may do DMA: Bus Master is enabled.
    pub fn masters_bus(&self, device: PciAddress) -> bool {
        self.state().hardware(device).is_ok_and(|hardware| hardware.masters_bus())
    }

    /// Reads the device's config space, without vfio-pci. Bytes beyond its end are zero.
    ///
    /// # Errors
    ///
    /// `ENODEV`: the device does not exist.
    pub fn config(&self, device: PciAddress, offset: usize, data: &mut [u8]) -> io::Result<()> {
        data.fill(0);
        self.state().hardware(device)?.read_config(offset, data);
        Ok(())
    }
}

impl State {
    fn place(&mut self, fd: Fd, position: u64) -> io::Result<Place<'_>> {
        let address = match self.files.kind(fd)? {
            Kind::Device(address) => address,
            Kind::Cdev(address, cdev) if self.has_access(address, cdev) => address,
            _ => return Err(errno(libc::EINVAL)),
        };
        self.hardware(address)?;
        let (index, offset) = split_position(position).ok_or_else(|| errno(libc::EINVAL))?;
        let entry = self.description.functions.get(&address);
        let region = entry.and_then(|entry| entry.function.regions.get(index as usize));
        match (region, self.hardware.get_mut(&address)) {
            (Some(region), Some(hardware)) => Ok(Place { index, region, offset, hardware }),
            _ => Err(errno(libc::EINVAL)),
        }
    }
}

impl Place<'_> {
    fn is_config(&self) -> bool {
        self.index == sys::VFIO_PCI_CONFIG_REGION_INDEX
    }

    /// The part of `wanted` bytes that the region has.
    fn length(&self, wanted: usize) -> io::Result<usize> {
        let left = self.region.size.checked_sub(self.offset).filter(|left| *left > 0);
        match left {
            None if self.is_config() => Err(errno(libc::EFAULT)),
            None => Err(errno(libc::EINVAL)),
            // The kernel does not see that the device is absent: the bus reads as all-ones.
            Some(_)
                if self.hardware.is_memory(self.index)
                    && !self.hardware.decodes_memory()
                    && !self.hardware.absent =>
            {
                Err(errno(libc::EIO))
            }
            Some(left) => Ok(usize::try_from(left).unwrap_or(usize::MAX).min(wanted)),
        }
    }

    fn read(self, data: &mut [u8]) -> io::Result<usize> {
        let length = self.length(data.len())?;
        let data = data.get_mut(..length).unwrap_or_default();
        match usize::try_from(self.offset) {
            Ok(offset) if self.is_config() => self.hardware.read_config(offset, data),
            _ if self.hardware.absent => data.fill(0xff),
            _ => {
                let memory = self.hardware.memory()?;
                memory.read_exact_at(data, position(self.index, self.offset))?;
            }
        }
        Ok(length)
    }

    fn write(self, data: &[u8]) -> io::Result<usize> {
        if self.index == sys::VFIO_PCI_ROM_REGION_INDEX {
            return Err(errno(libc::EINVAL));
        }
        let length = self.length(data.len())?;
        let data = data.get(..length).unwrap_or_default();
        match usize::try_from(self.offset) {
            Ok(offset) if self.is_config() => self.hardware.write_config(offset, data),
            _ if self.hardware.absent => {}
            _ => {
                let memory = self.hardware.memory()?;
                memory.write_all_at(data, position(self.index, self.offset))?;
            }
        }
        Ok(length)
    }

    fn mmap(self, size: u64) -> io::Result<Arc<File>> {
        // A region that is smaller than a page has its page for itself (vfio_pci_probe_mmaps).
        let whole = self.region.size.checked_next_multiple_of(PAGE);
        let end = self.offset.checked_add(size);
        let fits = end.zip(whole).is_some_and(|(end, whole)| end <= whole);
        match fits && self.region.flags & sys::VFIO_REGION_INFO_FLAG_MMAP != 0 {
            true => self.hardware.memory().cloned(),
            false => Err(errno(libc::EINVAL)),
        }
    }
}
