//! The contract, and its implementation by the model.

mod iommufd;

use std::io;

use vfio_model::{Fd, IrqSet, Irqfd, MapDma, System, UnmapDma};

pub use iommufd::Iommufd;

/// The calls of a user of `/dev/vfio`, legal or not. Structs that the kernel fills are buffers
/// that begin with `argsz`, as in linux/vfio.h.
pub trait Core: Iommufd {
    /// Opens `/dev/vfio/vfio`.
    fn open_container(&mut self) -> io::Result<Fd>;
    /// Opens `/dev/vfio/N`.
    fn open_group(&mut self, group: u32) -> io::Result<Fd>;
    /// Makes an eventfd.
    fn open_eventfd(&mut self) -> io::Result<Fd>;
    /// Makes a virtual machine with KVM's VFIO device.
    fn open_kvm(&mut self) -> io::Result<Fd>;
    /// Makes a memfd of a size.
    fn open_memory(&mut self, size: u64) -> io::Result<Fd>;
    /// Closes an fd.
    fn close(&mut self, fd: Fd) -> io::Result<()>;
    /// How often an eventfd was signalled since the last read.
    fn signals(&mut self, eventfd: Fd) -> io::Result<u64>;
    /// `VFIO_GET_API_VERSION`
    fn api_version(&mut self, container: Fd) -> io::Result<u32>;
    /// `VFIO_CHECK_EXTENSION`
    fn check_extension(&mut self, container: Fd, extension: u64) -> io::Result<u32>;
    /// `VFIO_SET_IOMMU`
    fn set_iommu(&mut self, container: Fd, kind: u64) -> io::Result<()>;
    /// `VFIO_IOMMU_MAP_DMA`
    fn map_dma(&mut self, container: Fd, call: &MapDma) -> io::Result<()>;
    /// `VFIO_IOMMU_UNMAP_DMA`: the number of bytes unmapped.
    fn unmap_dma(&mut self, container: Fd, call: &UnmapDma) -> io::Result<u64>;
    /// `VFIO_IOMMU_GET_INFO`
    fn iommu_info(&mut self, container: Fd, buffer: &mut [u8]) -> io::Result<()>;
    /// `VFIO_GROUP_GET_STATUS`: the flags.
    fn group_status(&mut self, group: Fd, argsz: u32) -> io::Result<u32>;
    /// `VFIO_GROUP_SET_CONTAINER`
    fn set_container(&mut self, group: Fd, container: Fd) -> io::Result<()>;
    /// `VFIO_GROUP_UNSET_CONTAINER`
    fn unset_container(&mut self, group: Fd) -> io::Result<()>;
    /// `VFIO_GROUP_GET_DEVICE_FD`
    fn open_device(&mut self, group: Fd, name: &str) -> io::Result<Fd>;
    /// `KVM_DEV_VFIO_FILE_ADD`
    fn link(&mut self, kvm: Fd, file: Fd) -> io::Result<()>;
    /// `KVM_DEV_VFIO_FILE_DEL`
    fn unlink(&mut self, kvm: Fd, file: Fd) -> io::Result<()>;
    /// `KVM_IRQFD`
    fn irqfd(&mut self, kvm: Fd, call: &Irqfd) -> io::Result<()>;
    /// `VFIO_DEVICE_GET_INFO`
    fn device_info(&mut self, device: Fd, buffer: &mut [u8]) -> io::Result<()>;
    /// `VFIO_DEVICE_GET_REGION_INFO`
    fn region_info(&mut self, device: Fd, buffer: &mut [u8]) -> io::Result<()>;
    /// `VFIO_DEVICE_GET_IRQ_INFO`
    fn irq_info(&mut self, device: Fd, buffer: &mut [u8]) -> io::Result<()>;
    /// `VFIO_DEVICE_SET_IRQS`
    fn set_irqs(&mut self, device: Fd, set: &IrqSet) -> io::Result<()>;
    /// `VFIO_DEVICE_RESET`
    fn reset(&mut self, device: Fd) -> io::Result<()>;
}

impl Core for System {
    fn open_container(&mut self) -> io::Result<Fd> {
        Ok(System::open_container(self))
    }

    fn open_group(&mut self, group: u32) -> io::Result<Fd> {
        System::open_group(self, group)
    }

    fn open_eventfd(&mut self) -> io::Result<Fd> {
        Ok(System::open_eventfd(self))
    }

    fn open_kvm(&mut self) -> io::Result<Fd> {
        Ok(System::open_kvm(self))
    }

    fn open_memory(&mut self, size: u64) -> io::Result<Fd> {
        Ok(System::open_memory(self, size))
    }

    fn close(&mut self, fd: Fd) -> io::Result<()> {
        System::close(self, fd)
    }

    fn signals(&mut self, eventfd: Fd) -> io::Result<u64> {
        System::signals(self, eventfd)
    }

    fn api_version(&mut self, container: Fd) -> io::Result<u32> {
        System::api_version(self, container)
    }

    fn check_extension(&mut self, container: Fd, extension: u64) -> io::Result<u32> {
        System::check_extension(self, container, extension)
    }

    fn set_iommu(&mut self, container: Fd, kind: u64) -> io::Result<()> {
        System::set_iommu(self, container, kind)
    }

    fn map_dma(&mut self, container: Fd, call: &MapDma) -> io::Result<()> {
        System::map_dma(self, container, call)
    }

    fn unmap_dma(&mut self, container: Fd, call: &UnmapDma) -> io::Result<u64> {
        System::unmap_dma(self, container, call)
    }

    fn iommu_info(&mut self, container: Fd, buffer: &mut [u8]) -> io::Result<()> {
        System::iommu_info(self, container, buffer)
    }

    fn group_status(&mut self, group: Fd, argsz: u32) -> io::Result<u32> {
        System::group_status(self, group, argsz)
    }

    fn set_container(&mut self, group: Fd, container: Fd) -> io::Result<()> {
        System::set_container(self, group, container)
    }

    fn unset_container(&mut self, group: Fd) -> io::Result<()> {
        System::unset_container(self, group)
    }

    fn open_device(&mut self, group: Fd, name: &str) -> io::Result<Fd> {
        System::open_device(self, group, name)
    }

    fn link(&mut self, kvm: Fd, file: Fd) -> io::Result<()> {
        System::link(self, kvm, file)
    }

    fn unlink(&mut self, kvm: Fd, file: Fd) -> io::Result<()> {
        System::unlink(self, kvm, file)
    }

    fn irqfd(&mut self, kvm: Fd, call: &Irqfd) -> io::Result<()> {
        System::irqfd(self, kvm, call)
    }

    fn device_info(&mut self, device: Fd, buffer: &mut [u8]) -> io::Result<()> {
        System::device_info(self, device, buffer)
    }

    fn region_info(&mut self, device: Fd, buffer: &mut [u8]) -> io::Result<()> {
        System::region_info(self, device, buffer)
    }

    fn irq_info(&mut self, device: Fd, buffer: &mut [u8]) -> io::Result<()> {
        System::irq_info(self, device, buffer)
    }

    fn set_irqs(&mut self, device: Fd, set: &IrqSet) -> io::Result<()> {
        System::set_irqs(self, device, set)
    }

    fn reset(&mut self, device: Fd) -> io::Result<()> {
        System::reset(self, device)
    }
}
