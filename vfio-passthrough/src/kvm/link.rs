//! The device by which KVM learns of IOMMU groups (Documentation/virt/kvm/devices/vfio.rst).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use kvm_bindings::{
    KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD, KVM_DEV_VFIO_FILE_DEL, kvm_create_device,
    kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_VFIO,
};
use kvm_ioctls::{DeviceFd, VmFd};

use super::errno;
use crate::host::GroupLink;

/// KVM's VFIO device of one VM.
pub struct KvmLink(DeviceFd);

impl KvmLink {
    pub(super) fn new(vm: &VmFd) -> io::Result<Self> {
        let mut device =
            kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_VFIO, fd: 0, flags: 0 };
        Ok(Self(vm.create_device(&mut device).map_err(errno)?))
    }

    /// Before Linux 6.1 the attributes were called `KVM_DEV_VFIO_GROUP*`, with the same numbers.
    fn set(&self, attr: u32, group: BorrowedFd<'_>) -> io::Result<()> {
        let fd = group.as_raw_fd();
        let attribute = kvm_device_attr {
            flags: 0,
            group: KVM_DEV_VFIO_FILE,
            attr: attr.into(),
            // The kernel reads an int there, during the call.
            addr: std::ptr::from_ref(&fd).expose_provenance() as u64,
        };
        self.0.set_device_attr(&attribute).map_err(errno)
    }
}

impl GroupLink for KvmLink {
    fn add(&self, group: BorrowedFd<'_>) -> io::Result<()> {
        self.set(KVM_DEV_VFIO_FILE_ADD, group)
    }

    fn remove(&self, group: BorrowedFd<'_>) -> io::Result<()> {
        self.set(KVM_DEV_VFIO_FILE_DEL, group)
    }
}
