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

/// `VFIO_DEVICE_BIND_FLAG_TOKEN`, which vfio-bindings lacks.
const BIND_FLAG_TOKEN: u32 = 1;

/// `VFIO_DEVICE_BIND_IOMMUFD`: binds the device to the iommufd of `ioas`, and opens the device:
/// all other calls on its file fail before that. The binding lasts until the file is closed.
pub(crate) fn bind(device: &impl AsRawFd, ioas: &Ioas, token: Option<&[u8; 16]>) -> io::Result<()> {
    let mut call = sys::vfio_device_bind_iommufd {
        argsz: argsz::<sys::vfio_device_bind_iommufd>(),
        flags: token.map_or(0, |_| BIND_FLAG_TOKEN),
        iommufd: ioas.as_raw_fd(),
        out_devid: 0,
        token_uuid_ptr: token.map_or(0, |token| token.as_ptr().expose_provenance() as u64),
    };
    // SAFETY: the kernel reads and writes the struct, and reads 16 bytes of `token` if there is one.
    // Both live until the call returns.
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
