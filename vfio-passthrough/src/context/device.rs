//! An open device.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::bridges::Behind;
use super::error::Error;
use crate::address::{ByteRange, PciAddress};
use crate::backend::{
    BusMember, Device, DeviceFlags, IrqInfo, RegionInfo, RegionMmap, SetIrqs, counted,
    file_position, ioctl, mmap_position,
};
use crate::counters::VfioCalls;
use crate::pci::presence::Identity;

/// What keeps a device open and in its address space. Dropping it closes the device.
pub(super) trait Attachment: Send + Sync {
    /// The device's file.
    fn device(&self) -> io::Result<&File>;

    /// See [`Device::recorded`].
    fn recorded(&self, address: PciAddress) -> Option<Identity>;

    /// Whether the address space can map a dma-buf ([`Device::export`]).
    fn exports(&self) -> bool;

    /// See [`Device::bus_members`].
    fn bus_members(&self) -> io::Result<Vec<BusMember>>;

    /// See [`Device::reset_bus`].
    fn reset_bus(&self) -> io::Result<()>;
}

/// A device of an [`IommuContext`](super::IommuContext). While it is open, it stays attached.
pub struct AssignedDevice {
    flags: DeviceFlags,
    recorded: Option<Identity>,
    calls: Arc<VfioCalls>,
    /// `None` after the device was closed.
    behind: Mutex<Option<Behind>>,
    /// Each call holds a reference while it runs, so that `close` does not wait for calls: the file
    /// is closed with the last reference.
    open: Mutex<Option<Arc<dyn Attachment>>>,
}

impl fmt::Debug for AssignedDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AssignedDevice").field("closed", &self.is_closed()).finish_non_exhaustive()
    }
}

impl AssignedDevice {
    pub(super) fn open(
        attachment: impl Attachment + 'static,
        address: PciAddress,
        (calls, behind): (Arc<VfioCalls>, Behind),
    ) -> Result<Self, Error> {
        let flags = attachment.device().and_then(ioctl::device_flags);
        let flags = flags.map_err(|source| Error::OpenDevice {
            address,
            call: "VFIO_DEVICE_GET_INFO",
            source,
        })?;
        let recorded = attachment.recorded(address);
        let (behind, open) =
            (Mutex::new(Some(behind)), Mutex::new(Some(Arc::new(attachment) as _)));
        Ok(Self { flags, recorded, calls, behind, open })
    }

    /// The device was closed ([`Device::close`]).
    pub fn is_closed(&self) -> bool {
        self.lock().is_none()
    }

    fn opened(&self) -> io::Result<Arc<dyn Attachment>> {
        let open = self.lock().clone();
        open.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<dyn Attachment>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for AssignedDevice {
    fn drop(&mut self) {
        self.close();
    }
}

impl Device for AssignedDevice {
    fn flags(&self) -> DeviceFlags {
        self.flags
    }

    fn recorded(&self) -> Option<Identity> {
        self.recorded
    }

    fn region(&self, index: u32) -> io::Result<RegionInfo> {
        self.calls.region_info.increment();
        ioctl::region_info(self.opened()?.device()?, index)
    }

    fn irq(&self, index: u32) -> io::Result<IrqInfo> {
        self.calls.irq_info.increment();
        ioctl::irq_info(self.opened()?.device()?, index)
    }

    fn read(&self, region: &RegionInfo, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let position = file_position(region, offset, data.len())?;
        self.calls.region_read.increment();
        self.opened()?.device()?.read_exact_at(data, position)
    }

    fn write(&self, region: &RegionInfo, offset: u64, data: &[u8]) -> io::Result<()> {
        let position = file_position(region, offset, data.len())?;
        self.calls.region_write.increment();
        self.opened()?.device()?.write_all_at(data, position)
    }

    fn mmap(self: Arc<Self>, region: &RegionInfo, range: ByteRange) -> io::Result<RegionMmap> {
        let position = mmap_position(region, range)?;
        self.calls.region_mmap.increment();
        let open = self.opened()?;
        RegionMmap::new(self.clone(), open.device()?.as_fd(), position, range.start(), range.size())
    }

    fn export(&self, region: &RegionInfo, range: ByteRange) -> io::Result<File> {
        let open = self.opened()?;
        if !open.exports() {
            return Err(io::Error::from_raw_os_error(libc::ENOTTY));
        }
        self.calls.dma_buf.increment();
        ioctl::export_dma_buf(open.device()?, region.index, range)
    }

    fn set_irqs(&self, call: SetIrqs<'_>) -> io::Result<()> {
        self.calls.set_irqs.increment();
        ioctl::set_irqs(self.opened()?.device()?, call)
    }

    fn reset(&self) -> io::Result<()> {
        self.calls.reset.increment();
        ioctl::reset(self.opened()?.device()?)
    }

    fn bus_members(&self) -> io::Result<Vec<BusMember>> {
        self.calls.hot_reset_info.increment();
        self.opened()?.bus_members()
    }

    fn reset_bus(&self) -> io::Result<()> {
        self.calls.hot_reset.increment();
        self.opened()?.reset_bus()
    }

    fn resets_when_closed(&self) -> bool {
        let behind = self.behind.lock().unwrap_or_else(PoisonError::into_inner);
        self.flags.contains(DeviceFlags::RESET) && behind.as_ref().is_some_and(Behind::is_alone)
    }

    fn close(&self) {
        // The file is closed without the lock: the kernel resets the device, which takes 100 ms.
        let open = self.lock().take();
        counted(|| drop(open));
        let behind = self.behind.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(behind);
    }
}
