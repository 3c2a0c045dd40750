//! Reads, writes and mappings of a device's regions, by its file (`vfio_pci_rw`,
//! `vfio_pci_core_mmap`).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vfio_bindings::bindings::vfio as sys;

use crate::files::Kind;
use crate::hardware::Hardware;
use crate::{Fd, PciAddress, Region, State, System, errno};

/// Offsets of regions in a device's file: the index is above these bits.
const INDEX_SHIFT: u32 = 40;

/// Where in a device's file an offset of a region is.
pub(crate) fn position(index: u32, offset: u64) -> u64 {
    (u64::from(index) << INDEX_SHIFT).saturating_add(offset)
}

/// Part of a region.
struct Place<'a> {
    index: u32,
    region: &'a Region,
    offset: u64,
    hardware: &'a mut Hardware,
}

impl System {
    /// `pread` of a device's file: how many bytes there were. EINVAL beyond a region, EFAULT beyond
    /// config space, EIO for memory that the device does not decode.
    pub fn read(&self, device: Fd, offset: u64, data: &mut [u8]) -> io::Result<usize> {
        self.state().place(device, offset)?.read(data)
    }

    /// `pwrite` of a device's file, as [`read`](Self::read). The ROM cannot be written (EINVAL).
    pub fn write(&self, device: Fd, offset: u64, data: &[u8]) -> io::Result<usize> {
        let mut state = self.state();
        let written = state.place(device, offset)?.write(data)?;
        // Interrupt Disable may have let the pin go.
        let address = state.device_of(device)?;
        state.look_at_pin(address);
        Ok(written)
    }

    /// `mmap` of a device's file: the file that holds the device's memory, to be mapped at the same
    /// offset. EINVAL where the region does not say that it can be mapped.
    ///
    /// The kernel takes the pages away while the device [does not decode](Self::decodes_memory) its
    /// memory, so that an access is a SIGBUS. What is mapped here stays.
    pub fn mmap(&self, device: Fd, offset: u64, size: u64) -> io::Result<Arc<File>> {
        self.state().place(device, offset)?.mmap(size)
    }

    /// Whether a device answers in its memory regions: Memory Space is enabled, and it is not in
    /// D3hot.
    pub fn decodes_memory(&self, device: PciAddress) -> bool {
        self.state().hardware(device).is_ok_and(|own| own.decodes_memory())
    }

    /// Whether a device may do DMA: Bus Master is enabled.
    pub fn masters_bus(&self, device: PciAddress) -> bool {
        self.state().hardware(device).is_ok_and(|own| own.masters_bus())
    }

    /// The hardware's config space from an offset on: zeros beyond its end.
    pub fn config(&self, device: PciAddress, offset: usize, data: &mut [u8]) -> io::Result<()> {
        data.fill(0);
        self.state().hardware(device)?.read_config(offset, data);
        Ok(())
    }
}

impl State {
    /// A device's hardware, plugged in when it is first asked for.
    pub fn hardware(&mut self, address: PciAddress) -> io::Result<&mut Hardware> {
        let entry = self.description.functions.get(&address);
        let function = &entry.ok_or_else(|| errno(libc::ENODEV))?.function;
        let hardware = self.hardware.entry(address);
        Ok(hardware.or_insert_with(|| Hardware::new(function)))
    }

    fn place(&mut self, fd: Fd, position: u64) -> io::Result<Place<'_>> {
        let Kind::Device(address) = self.files.kind(fd)? else {
            return Err(errno(libc::EINVAL));
        };
        self.hardware(address)?;
        let entry = self.description.functions.get(&address);
        let hardware = self.hardware.get_mut(&address);
        let index = u32::try_from(position >> INDEX_SHIFT).map_err(|_| errno(libc::EINVAL))?;
        let region = entry.and_then(|entry| entry.function.regions.get(index as usize));
        let (Some(region), Some(hardware)) = (region, hardware) else {
            return Err(errno(libc::EINVAL));
        };
        Ok(Place {
            index,
            region,
            offset: position & (1_u64 << INDEX_SHIFT).saturating_sub(1),
            hardware,
        })
    }
}

impl Place<'_> {
    fn is_config(&self) -> bool {
        self.index == sys::VFIO_PCI_CONFIG_REGION_INDEX
    }

    /// How many of so many bytes the region has.
    fn length(&self, wanted: usize) -> io::Result<usize> {
        let left = self.region.size.checked_sub(self.offset).filter(|left| *left > 0);
        match left {
            None if self.is_config() => Err(errno(libc::EFAULT)),
            None => Err(errno(libc::EINVAL)),
            Some(_) if self.hardware.is_memory(self.index) && !self.hardware.decodes_memory() => {
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
            _ => {
                let memory = self.hardware.memory()?;
                memory.write_all_at(data, position(self.index, self.offset))?;
            }
        }
        Ok(length)
    }

    fn mmap(self, size: u64) -> io::Result<Arc<File>> {
        let fits = self.offset.checked_add(size).is_some_and(|end| end <= self.region.size);
        match fits && self.region.flags & sys::VFIO_REGION_INFO_FLAG_MMAP != 0 {
            true => self.hardware.memory().cloned(),
            false => Err(errno(libc::EINVAL)),
        }
    }
}
