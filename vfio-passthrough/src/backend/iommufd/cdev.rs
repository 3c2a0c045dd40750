//! The calls that bind a device's character device to iommufd (linux/vfio.h).

use std::io;
use std::os::fd::AsRawFd;

use vfio_bindings::bindings::vfio as sys;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_io_nr;

use super::Ioas;
use crate::backend::ioctl::{argsz, check};

ioctl_io_nr!(VFIO_DEVICE_BIND_IOMMUFD, sys::VFIO_TYPE as u32, sys::VFIO_BASE + 18);
ioctl_io_nr!(VFIO_DEVICE_ATTACH_IOMMUFD_PT, sys::VFIO_TYPE as u32, sys::VFIO_BASE + 19);

/// `VFIO_DEVICE_BIND_IOMMUFD`: binds the device to the iommufd of `ioas`, and opens the device:
/// all other calls on its file fail before that. The binding lasts until the file is closed.
pub(crate) fn bind(device: &impl AsRawFd, ioas: &Ioas) -> io::Result<()> {
    let mut call = sys::vfio_device_bind_iommufd {
        argsz: argsz::<sys::vfio_device_bind_iommufd>(),
        iommufd: ioas.as_raw_fd(),
        ..Default::default()
    };
    // SAFETY: the kernel reads and writes the struct, which lives until the call returns.
    check(unsafe { ioctl_with_mut_ref(device, VFIO_DEVICE_BIND_IOMMUFD(), &mut call) })
}

/// `VFIO_DEVICE_ATTACH_IOMMUFD_PT`: the device does DMA by the mappings of `ioas` from now on.
pub(crate) fn attach_ioas(device: &impl AsRawFd, ioas: &Ioas) -> io::Result<()> {
    let mut call = sys::vfio_device_attach_iommufd_pt {
        argsz: argsz::<sys::vfio_device_attach_iommufd_pt>(),
        pt_id: ioas.id(),
        ..Default::default()
    };
    // SAFETY: the kernel reads and writes the struct, which lives until the call returns.
    check(unsafe { ioctl_with_mut_ref(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT(), &mut call) })
}
