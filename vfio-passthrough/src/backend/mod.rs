//! The port to the kernel: two traits, for an I/O address space and for a device, and their
//! implementations.
//!
//! The module `type1` implements an address space on VFIO's legacy interface (`/dev/vfio/vfio`,
//! type1v2). [`context`](crate::context) implements a device of a group (`/dev/vfio/N`). All
//! `unsafe` of the crate's core is in this folder. The code above it is safe code on these two
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
    /// Properties of a device: `flags` of `struct vfio_device_info` (linux/vfio.h).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct DeviceFlags: u32 {
        /// The device supports `VFIO_DEVICE_RESET`.
        const RESET = vfio_bindings::bindings::vfio::VFIO_DEVICE_FLAGS_RESET;
        /// The device is a PCI function behind vfio-pci.
        const PCI = vfio_bindings::bindings::vfio::VFIO_DEVICE_FLAGS_PCI;
        const _ = !0;
    }

    /// Supported accesses of a region: `flags` of `struct vfio_region_info` (linux/vfio.h).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct RegionFlags: u32 {
        /// The region can be read.
        const READ = vfio_bindings::bindings::vfio::VFIO_REGION_INFO_FLAG_READ;
        /// The region can be written.
        const WRITE = vfio_bindings::bindings::vfio::VFIO_REGION_INFO_FLAG_WRITE;
        /// The region can be mapped.
        const MMAP = vfio_bindings::bindings::vfio::VFIO_REGION_INFO_FLAG_MMAP;
        const _ = !0;
    }

    /// Properties of an interrupt index: `flags` of `struct vfio_irq_info` (linux/vfio.h).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct IrqFlags: u32 {
        /// The index can signal eventfds.
        const EVENTFD = vfio_bindings::bindings::vfio::VFIO_IRQ_INFO_EVENTFD;
        /// The vectors can be masked and unmasked.
        const MASKABLE = vfio_bindings::bindings::vfio::VFIO_IRQ_INFO_MASKABLE;
        /// The interrupt is masked when it fires (INTx).
        const AUTOMASKED = vfio_bindings::bindings::vfio::VFIO_IRQ_INFO_AUTOMASKED;
        /// Vectors cannot be added while the index is enabled.
        const NORESIZE = vfio_bindings::bindings::vfio::VFIO_IRQ_INFO_NORESIZE;
        const _ = !0;
    }
}

/// A region of a device: a BAR, the ROM or config space (`struct vfio_region_info`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegionInfo {
    /// The index (`VFIO_PCI_*_REGION_INDEX`).
    pub index: u32,
    /// The supported accesses.
    pub flags: RegionFlags,
    /// The size in bytes; 0 if the device does not have the region.
    pub size: u64,
    /// The offset of the region in the device's file, in bytes.
    pub file_offset: u64,
    /// The areas that can be mapped, relative to the region (`VFIO_REGION_INFO_CAP_SPARSE_MMAP`).
    /// `None`: the whole region, if its flags allow it.
    pub sparse: Option<Vec<ByteRange>>,
}

/// An interrupt index of a device (`struct vfio_irq_info`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IrqInfo {
    /// The index (`VFIO_PCI_*_IRQ_INDEX`).
    pub index: u32,
    /// The properties.
    pub flags: IrqFlags,
    /// The number of vectors; 0 if the device does not have the index.
    pub count: u32,
}

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
        /// The index. It must have [`IrqFlags::AUTOMASKED`].
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

/// The limits of an I/O address space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IommuInfo {
    /// The ranges that can be mapped. `None` if the kernel does not report them (before 5.4).
    pub iova_ranges: Option<Vec<ByteRange>>,
    /// The number of mappings that can be added. `None` if the kernel does not report it (before
    /// 5.10).
    pub dma_avail: Option<u32>,
}

/// An I/O address space: a VFIO container, or an IOAS of iommufd.
pub trait AddressSpace: Send + Sync {
    /// The limits of the address space. They can change when a group is attached.
    ///
    /// # Errors
    ///
    /// The errno of the ioctl: `EINVAL` before a group was attached.
    fn info(&self) -> io::Result<IommuInfo>;

    /// Maps `size` bytes of memory at `host` to the I/O virtual address `iova`, for reads and
    /// writes of the devices. The kernel pins the memory. All three are multiples of the page size.
    ///
    /// # Errors
    ///
    /// `EEXIST` if the range overlaps a mapping, `EINVAL` if it is not aligned or is outside of the
    /// IOVA ranges, `ENOMEM` if it exceeds RLIMIT_MEMLOCK, `ENOSPC` if there are too many mappings,
    /// `EFAULT` if the memory is not mapped in this process.
    ///
    /// # Safety
    ///
    /// Until `unmap` of the same range succeeds or the address space is dropped, the memory must
    /// stay mapped in this process, and must be accessed only as
    /// [`HostMemory`](crate::host::HostMemory) requires.
    unsafe fn map(&self, iova: u64, size: u64, host: *mut u8) -> io::Result<()>;

    /// Unmaps a range that one `map` mapped. After a success, no device can access the memory.
    ///
    /// # Errors
    ///
    /// The errno of the ioctl. Devices may still access the memory.
    fn unmap(&self, iova: u64, size: u64) -> io::Result<()>;
}

/// An open VFIO device: the calls on its file. Each returns the errno of its system call.
pub trait Device: Send + Sync {
    /// The properties of the device.
    fn flags(&self) -> DeviceFlags;

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

    /// Binds or unbinds interrupt vectors.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the kernel refuses the arguments, `StorageFull` if the host has too few vectors.
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

    /// Closes the device, even if other owners hold this value. Later calls fail with `ENODEV`. It
    /// does not wait for calls under way in other threads: the last of them closes the file. The
    /// kernel then disables the remaining interrupts. It releases the device when the region
    /// mappings are unmapped too.
    fn close(&self);
}

/// The file offset of an access to a region. An access outside of the region is `EINVAL`: its file
/// offset would belong to the next region.
pub(crate) fn file_position(region: &RegionInfo, offset: u64, length: usize) -> io::Result<u64> {
    let inside =
        ByteRange::new(offset, length as u64).is_some_and(|access| access.end() <= region.size);
    let position = region.file_offset.checked_add(offset).filter(|_| inside);
    position.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
}
