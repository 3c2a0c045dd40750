//! The part of the contract about `/dev/iommu` and character devices.

use std::io;

use vfio_model::{
    AttachPt, BindIommufd, Fd, IoasMap, IoasMapFile, IoasUnmap, IommuOption, MockDevice, System,
};

/// The calls of a user of iommufd, legal or not.
pub trait Iommufd {
    /// Opens `/dev/iommu`.
    fn open_iommufd(&mut self) -> io::Result<Fd>;
    /// Opens `/dev/vfio/devices/vfioN` of the device of this name.
    fn open_cdev(&mut self, name: &str) -> io::Result<Fd>;
    /// `IOMMU_IOAS_ALLOC`: the number of the address space.
    fn ioas_alloc(&mut self, iommufd: Fd, flags: u32) -> io::Result<u32>;
    /// `IOMMU_DESTROY`
    fn iommu_destroy(&mut self, iommufd: Fd, id: u32) -> io::Result<()>;
    /// `IOMMU_IOAS_MAP`: the IOVA.
    fn ioas_map(&mut self, iommufd: Fd, call: &IoasMap) -> io::Result<u64>;
    /// `IOMMU_IOAS_MAP_FILE`: the IOVA.
    fn ioas_map_file(&mut self, iommufd: Fd, call: &IoasMapFile) -> io::Result<u64>;
    /// `IOMMU_IOAS_UNMAP`: the number of bytes unmapped.
    fn ioas_unmap(&mut self, iommufd: Fd, call: &IoasUnmap) -> io::Result<u64>;
    /// `IOMMU_OPTION`: the value.
    fn iommu_option(&mut self, iommufd: Fd, call: &IommuOption) -> io::Result<u64>;
    /// `VFIO_DEVICE_BIND_IOMMUFD`: the number of the device.
    fn bind_iommufd(&mut self, device: Fd, call: &BindIommufd) -> io::Result<u32>;
    /// `VFIO_DEVICE_ATTACH_IOMMUFD_PT`: the number of the page table.
    fn attach_pt(&mut self, device: Fd, call: &AttachPt) -> io::Result<u32>;
    /// `VFIO_DEVICE_DETACH_IOMMUFD_PT`
    fn detach_pt(&mut self, device: Fd, call: &AttachPt) -> io::Result<()>;
    /// `VFIO_DEVICE_GET_PCI_HOT_RESET_INFO`
    fn hot_reset_info(&mut self, device: Fd, buffer: &mut [u8]) -> io::Result<()>;
    /// `VFIO_DEVICE_PCI_HOT_RESET`
    fn hot_reset(&mut self, device: Fd, groups: &[Fd]) -> io::Result<()>;
    /// `IOMMU_TEST_OP_MOCK_DOMAIN`: the numbers of a mock device that is attached to an object.
    fn mock_attach(&mut self, iommufd: Fd, id: u32) -> io::Result<MockDevice>;
    /// `IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE`: the number of the page table.
    fn mock_replace(&mut self, iommufd: Fd, mock: u32, id: u32) -> io::Result<u32>;
    /// The ioctl of a number, counted from `VFIO_BASE`, with a struct. An array to which the
    /// struct points lies behind the struct, at its `size`.
    fn request(&mut self, fd: Fd, number: u32, argument: &mut [u8]) -> io::Result<()>;
}

impl Iommufd for System {
    fn open_iommufd(&mut self) -> io::Result<Fd> {
        System::open_iommufd(self)
    }

    fn open_cdev(&mut self, name: &str) -> io::Result<Fd> {
        System::open_cdev(self, name.parse().map_err(io::Error::other)?)
    }

    fn ioas_alloc(&mut self, iommufd: Fd, flags: u32) -> io::Result<u32> {
        System::ioas_alloc(self, iommufd, flags)
    }

    fn iommu_destroy(&mut self, iommufd: Fd, id: u32) -> io::Result<()> {
        System::iommu_destroy(self, iommufd, id)
    }

    fn ioas_map(&mut self, iommufd: Fd, call: &IoasMap) -> io::Result<u64> {
        System::ioas_map(self, iommufd, call)
    }

    fn ioas_map_file(&mut self, iommufd: Fd, call: &IoasMapFile) -> io::Result<u64> {
        System::ioas_map_file(self, iommufd, call)
    }

    fn ioas_unmap(&mut self, iommufd: Fd, call: &IoasUnmap) -> io::Result<u64> {
        System::ioas_unmap(self, iommufd, call)
    }

    fn iommu_option(&mut self, iommufd: Fd, call: &IommuOption) -> io::Result<u64> {
        System::iommu_option(self, iommufd, call)
    }

    fn bind_iommufd(&mut self, device: Fd, call: &BindIommufd) -> io::Result<u32> {
        System::bind_iommufd(self, device, call)
    }

    fn attach_pt(&mut self, device: Fd, call: &AttachPt) -> io::Result<u32> {
        System::attach_pt(self, device, call)
    }

    fn detach_pt(&mut self, device: Fd, call: &AttachPt) -> io::Result<()> {
        System::detach_pt(self, device, call)
    }

    fn hot_reset_info(&mut self, device: Fd, buffer: &mut [u8]) -> io::Result<()> {
        System::hot_reset_info(self, device, buffer)
    }

    fn hot_reset(&mut self, device: Fd, groups: &[Fd]) -> io::Result<()> {
        System::hot_reset(self, device, groups)
    }

    fn mock_attach(&mut self, iommufd: Fd, id: u32) -> io::Result<MockDevice> {
        System::mock_attach(self, iommufd, id)
    }

    fn mock_replace(&mut self, iommufd: Fd, mock: u32, id: u32) -> io::Result<u32> {
        System::mock_replace(self, iommufd, mock, id)
    }

    fn request(&mut self, fd: Fd, number: u32, argument: &mut [u8]) -> io::Result<()> {
        System::ioctl(self, fd, number, argument, &mut Fd).map(|_| ())
    }
}
