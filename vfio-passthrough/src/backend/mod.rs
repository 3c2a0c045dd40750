//! The port to the kernel: what the crate needs of an IOMMU address space and of a device, and who
//! provides it.
//!
//! [`group`] is the legacy interface (`/dev/vfio/vfio`, `/dev/vfio/N`, type1v2) on vfio-ioctls. All
//! `unsafe` of the crate's core is in this folder; above it everything is safe code over these two
//! traits.

mod adjacent;
mod info;
pub(crate) mod ioctl;
mod kernel_mapping;
mod limits;
mod mmap;
pub mod sysfs;
pub(crate) mod type1;

use std::io;
use std::sync::Arc;

pub use type1::ContainerError;

pub(crate) use adjacent::AdjacentMemory;
pub(crate) use kernel_mapping::KernelMapping;
pub(crate) use limits::raise_locked_memory;
pub use mmap::RegionMmap;
pub(crate) use mmap::host_page_size;

use vmm_sys_util::eventfd::EventFd;

use crate::address::{ByteRange, PciAddress};

bitflags::bitflags! {
    /// What a device can do: `flags` of `struct vfio_device_info` (linux/vfio.h).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct DeviceFlags: u32 {
        /// `VFIO_DEVICE_RESET` works.
        const RESET = vfio_bindings::bindings::vfio::VFIO_DEVICE_FLAGS_RESET;
        /// It is a PCI function behind vfio-pci.
        const PCI = vfio_bindings::bindings::vfio::VFIO_DEVICE_FLAGS_PCI;
        const _ = !0;
    }

    /// What can be done with a region: `flags` of `struct vfio_region_info`.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct RegionFlags: u32 {
        /// It can be read.
        const READ = vfio_bindings::bindings::vfio::VFIO_REGION_INFO_FLAG_READ;
        /// It can be written.
        const WRITE = vfio_bindings::bindings::vfio::VFIO_REGION_INFO_FLAG_WRITE;
        /// It can be mapped.
        const MMAP = vfio_bindings::bindings::vfio::VFIO_REGION_INFO_FLAG_MMAP;
        const _ = !0;
    }

    /// How an interrupt index behaves: `flags` of `struct vfio_irq_info`.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct IrqFlags: u32 {
        /// It signals eventfds.
        const EVENTFD = vfio_bindings::bindings::vfio::VFIO_IRQ_INFO_EVENTFD;
        /// Its vectors can be masked.
        const MASKABLE = vfio_bindings::bindings::vfio::VFIO_IRQ_INFO_MASKABLE;
        /// It masks itself when it fires (INTx).
        const AUTOMASKED = vfio_bindings::bindings::vfio::VFIO_IRQ_INFO_AUTOMASKED;
        /// Vectors cannot be added once it is enabled.
        const NORESIZE = vfio_bindings::bindings::vfio::VFIO_IRQ_INFO_NORESIZE;
        const _ = !0;
    }
}

/// A region of a device: a BAR, the ROM, config space.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegionInfo {
    /// Its number (`VFIO_PCI_*_REGION_INDEX`).
    pub index: u32,
    /// What can be done with it.
    pub flags: RegionFlags,
    /// Its size in bytes; 0 where the device does not have it.
    pub size: u64,
    /// Where it starts in the device's file.
    pub file_offset: u64,
    /// Where only parts of it can be mapped (`VFIO_REGION_INFO_CAP_SPARSE_MMAP`): these, relative
    /// to the region.
    pub sparse: Option<Vec<ByteRange>>,
}

/// An interrupt index of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IrqInfo {
    /// Its number (`VFIO_PCI_*_IRQ_INDEX`).
    pub index: u32,
    /// How it behaves.
    pub flags: IrqFlags,
    /// How many vectors it has; 0 where the device does not have it.
    pub count: u32,
}

/// A call of `VFIO_DEVICE_SET_IRQS`.
#[derive(Clone, Copy, Debug)]
pub enum SetIrqs<'a> {
    /// Vectors from `start` on signal these eventfds (`DATA_EVENTFD | ACTION_TRIGGER`); `None`
    /// frees a vector. Enables the index where it was off.
    Trigger {
        /// The index.
        index: u32,
        /// The first vector.
        start: u32,
        /// An eventfd a vector.
        eventfds: &'a [Option<Arc<EventFd>>],
    },
    /// The first vector is unmasked whenever this eventfd is signalled (`DATA_EVENTFD |
    /// ACTION_UNMASK`).
    UnmaskOn {
        /// The index, one that is masked when it fires.
        index: u32,
        /// The eventfd.
        eventfd: &'a Arc<EventFd>,
    },
    /// Turns the whole index off (`DATA_NONE | ACTION_TRIGGER`, count 0).
    Disable {
        /// The index.
        index: u32,
    },
}

/// A function that a reset of a bus reaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BusMember {
    /// Which.
    pub address: PciAddress,
    /// Its group is attached here, so that nobody else can have it open.
    pub ours: bool,
    /// The driver that has it.
    pub driver: Option<String>,
}

/// What the IOMMU of an address space can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IommuInfo {
    /// Where mappings can be, or `None` where the kernel does not say (before 5.4).
    pub iova_ranges: Option<Vec<ByteRange>>,
    /// How many mappings more it takes, or `None` where the kernel does not say (before 5.10).
    pub dma_avail: Option<u32>,
}

/// An I/O address space: what a VFIO container or an IOAS is.
pub trait AddressSpace: Send + Sync {
    /// What the IOMMU can do. Changes when a group is attached, so ask after the last one.
    ///
    /// # Errors
    ///
    /// The errno of the ioctl; `EINVAL` before a group was attached.
    fn info(&self) -> io::Result<IommuInfo>;

    /// Lets the devices read and write `size` bytes at `host`, at the address `iova`. The kernel
    /// pins them.
    ///
    /// # Errors
    ///
    /// `EEXIST`: overlaps a mapping. `EINVAL`: not aligned, or outside of the IOVA ranges.
    /// `ENOMEM`: over RLIMIT_MEMLOCK. `ENOSPC`: too many mappings. `EFAULT`: not mapped in this
    /// process.
    ///
    /// # Safety
    ///
    /// The memory stays mapped and is used as [`HostMemory`](crate::host::HostMemory) demands until
    /// `unmap` of the same range succeeded, or the address space is gone.
    unsafe fn map(&self, iova: u64, size: u64, host: *mut u8) -> io::Result<()>;

    /// Ends a mapping. When this succeeds no device reaches the memory any more.
    fn unmap(&self, iova: u64, size: u64) -> io::Result<()>;
}

/// A device that VFIO gave us: the calls on its file.
pub trait Device: Send + Sync {
    /// What the device can do.
    fn flags(&self) -> DeviceFlags;

    /// A region; size 0 where the device does not have it.
    fn region(&self, index: u32) -> io::Result<RegionInfo>;

    /// An interrupt index; count 0 where the device does not have it.
    fn irq(&self, index: u32) -> io::Result<IrqInfo>;

    /// Reads all of `data` from `offset` of the region. A short read is `UnexpectedEof`.
    fn read(&self, region: &RegionInfo, offset: u64, data: &mut [u8]) -> io::Result<()>;

    /// Writes all of `data` to `offset` of the region. A short write is `WriteZero`.
    fn write(&self, region: &RegionInfo, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Maps part of a region (page-aligned) into this process. The mapping holds the device.
    fn mmap(self: Arc<Self>, region: &RegionInfo, range: ByteRange) -> io::Result<RegionMmap>;

    /// Binds or frees interrupt vectors.
    fn set_irqs(&self, call: SetIrqs<'_>) -> io::Result<()>;

    /// Resets the function; returns when it is done. BAR mappings fault until then.
    fn reset(&self) -> io::Result<()>;

    /// Every function that a reset of the function's bus or slot would reset, itself among them.
    ///
    /// # Errors
    ///
    /// `ENODEV` where neither can be reset: on a root bus, as a rule.
    fn bus_members(&self) -> io::Result<Vec<BusMember>>;

    /// Resets the function's bus or slot, with all that is on it. BAR mappings fault until it is
    /// done.
    ///
    /// # Errors
    ///
    /// `EINVAL` where a function is in a group that is not ours.
    fn reset_bus(&self) -> io::Result<()>;

    /// Closes the device for good, whoever else holds this value: every call fails with `ENODEV`
    /// from here on. Calls that are under way in other threads are not waited for; the last of them
    /// closes the file. The kernel then turns off what interrupts are left, and has the device back
    /// once its mappings are gone too.
    fn close(&self);
}

/// Bounds of an access to a region; the kernel would fold what lies outside into the next region's
/// offsets.
pub(crate) fn file_position(region: &RegionInfo, offset: u64, length: usize) -> io::Result<u64> {
    let inside =
        ByteRange::new(offset, length as u64).is_some_and(|access| access.end() <= region.size);
    let position = region.file_offset.checked_add(offset).filter(|_| inside);
    position.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
}
