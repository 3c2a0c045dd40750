//! The port to a device.

use std::fs::File;
use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::description::{DeviceFlags, IrqInfo, RegionInfo};
use super::host_page_size;
use super::mmap::RegionMmap;
use crate::address::{ByteRange, PciAddress};
use crate::pci::presence::Identity;

/// A call of `VFIO_DEVICE_SET_IRQS`.
#[derive(Clone, Copy, Debug)]
pub enum SetIrqs<'a> {
    /// Binds eventfds to vectors from `start` on (`DATA_EVENTFD | ACTION_TRIGGER`). `None` unbinds
    /// a vector. This enables the index if it is disabled.
    Trigger {
        /// The index.
        index: u32,
        /// The first vector.
        start: u32,
        /// One eventfd for each vector.
        eventfds: &'a [Option<Arc<EventFd>>],
    },
    /// Binds an eventfd that unmasks the first vector whenever it is signalled (`DATA_EVENTFD |
    /// ACTION_UNMASK`).
    UnmaskOn {
        /// The index. It must have [`IrqFlags::AUTOMASKED`](super::IrqFlags::AUTOMASKED).
        index: u32,
        /// The eventfd.
        eventfd: &'a Arc<EventFd>,
    },
    /// Disables the whole index (`DATA_NONE | ACTION_TRIGGER`, count 0).
    Disable {
        /// The index.
        index: u32,
    },
}

/// A function that a reset of a bus resets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BusMember {
    /// The function's address on the host.
    pub address: PciAddress,
    /// This process has attached the function's group, so no other process can open the function.
    pub ours: bool,
    /// The driver to which the function is bound, if any.
    pub driver: Option<String>,
}

/// The host has only this number of vectors for a call of `VFIO_DEVICE_SET_IRQS` that enables MSI
/// or MSI-X. Nothing was enabled (vfio_msi_enable). It is the inner error of an [`io::Error`] of
/// the kind `StorageFull`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the host has only {0} vectors for the device")]
pub struct FewerVectors(pub u32);

impl From<FewerVectors> for io::Error {
    fn from(fewer: FewerVectors) -> Self {
        Self::new(io::ErrorKind::StorageFull, fewer)
    }
}

/// An open VFIO device: the calls on its file. Each returns the errno of its system call.
pub trait Device: Send + Sync {
    /// The properties of the device.
    fn flags(&self) -> DeviceFlags;

    /// The IDs that the host's kernel recorded when it found the device. `None` if they are not
    /// known: the device is then not compared with them.
    fn recorded(&self) -> Option<Identity> {
        None
    }

    /// Describes a region. The size is 0 if the device does not have it.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the kernel does not know the index for the device.
    fn region(&self, index: u32) -> io::Result<RegionInfo>;

    /// Describes an interrupt index. The count is 0 if the device does not have it.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the kernel does not know the index for the device.
    fn irq(&self, index: u32) -> io::Result<IrqInfo>;

    /// Fills `data` from `offset` of the region.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the access is not inside the region, `UnexpectedEof` for a short read, `EIO` if
    /// the device does not respond or does not decode the region.
    fn read(&self, region: &RegionInfo, offset: u64, data: &mut [u8]) -> io::Result<()>;

    /// Writes all of `data` at `offset` of the region.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the access is not inside the region, `WriteZero` for a short write, `EIO` if the
    /// device does not respond or does not decode the region.
    fn write(&self, region: &RegionInfo, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Maps part of a region into this process. `range` is page-aligned and relative to the region.
    /// The mapping holds the device.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the range cannot be mapped.
    fn mmap(self: Arc<Self>, region: &RegionInfo, range: ByteRange) -> io::Result<RegionMmap>;

    /// Exports a page-aligned range of a region as a dma-buf, which iommufd can map for other
    /// devices (`VFIO_DEVICE_FEATURE_DMA_BUF`). type1 maps the memory of
    /// [`mmap`](Self::mmap) instead.
    ///
    /// # Errors
    ///
    /// `ENOTTY` if the kernel or the address space does not have dma-bufs of BARs.
    fn export(&self, _region: &RegionInfo, _range: ByteRange) -> io::Result<File> {
        Err(io::Error::from_raw_os_error(libc::ENOTTY))
    }

    /// Binds or unbinds interrupt vectors.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the kernel refuses the arguments; `ENOSPC` or [`FewerVectors`] if the host has
    /// too few vectors.
    fn set_irqs(&self, call: SetIrqs<'_>) -> io::Result<()>;

    /// Resets the function, and returns after the reset. BAR mappings fault until then.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the function has no reset, `EAGAIN` while the kernel holds the device's lock
    /// (pci_try_reset_function).
    fn reset(&self) -> io::Result<()>;

    /// The functions that a reset of the function's bus or slot would reset, itself included.
    ///
    /// # Errors
    ///
    /// `ENODEV` if neither can be reset: this is usual on a root bus.
    fn bus_members(&self) -> io::Result<Vec<BusMember>>;

    /// Resets all functions of the function's bus or slot, and returns after the reset. BAR
    /// mappings fault until then.
    ///
    /// # Errors
    ///
    /// `EINVAL` if this process has not attached the group of one of the functions.
    fn reset_bus(&self) -> io::Result<()>;

    /// Whether the kernel resets the device by itself when it is closed (vfio_pci_core_disable). It
    /// does so without a result, so that `false` is the safe answer.
    fn resets_when_closed(&self) -> bool {
        false
    }

    /// Closes the device, even if other owners hold this value. Later calls fail with `ENODEV`. It
    /// does not wait for calls under way in other threads: the last of them closes the file. The
    /// kernel then disables the remaining interrupts. It releases the device when the region
    /// mappings are unmapped too.
    fn close(&self);
}

/// The position in the device's file of an area to map. A BAR that is smaller than a page can be
/// mapped if it has its page for itself (vfio_pci_probe_mmaps), and then as a whole page.
pub(crate) fn mmap_position(region: &RegionInfo, area: ByteRange) -> io::Result<u64> {
    let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
    let size = region.size.checked_next_multiple_of(host_page_size()).ok_or_else(invalid)?;
    let length = usize::try_from(area.size()).map_err(|_| invalid())?;
    file_position(&RegionInfo { size, ..region.clone() }, area.start(), length)
}

/// The file offset of an access to a region. An access outside of the region is `EINVAL`: its file
/// offset would belong to the next region.
pub(crate) fn file_position(region: &RegionInfo, offset: u64, length: usize) -> io::Result<u64> {
    let inside =
        ByteRange::new(offset, length as u64).is_some_and(|access| access.end() <= region.size);
    let position = region.file_offset.checked_add(offset).filter(|_| inside);
    position.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
}
