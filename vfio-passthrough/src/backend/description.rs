//! VFIO's descriptions of a device, its regions and interrupts, and of an IOMMU.

use crate::address::ByteRange;

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

/// The limits of an I/O address space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IommuInfo {
    /// The ranges that can be mapped. `None` if the kernel does not report them (before 5.4).
    pub iova_ranges: Option<Vec<ByteRange>>,
    /// The number of mappings that can be added. `None` if the kernel does not report it (before
    /// 5.10).
    pub dma_avail: Option<u32>,
}
