//! The device by which KVM learns of IOMMU groups (Documentation/virt/kvm/devices/vfio.rst).

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use kvm_bindings::{
    KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD, KVM_DEV_VFIO_FILE_DEL, kvm_create_device,
    kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_VFIO,
};
use kvm_ioctls::{DeviceFd, VmFd};

use super::errno::errno;
use crate::host::GroupLink;

/// KVM's VFIO device of one VM: KVM learns from it which IOMMU groups the VM has. Interrupts of
/// assigned devices can then be posted to a running vCPU, and non-coherent DMA works.
pub struct KvmLink(DeviceFd);

impl fmt::Debug for KvmLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KvmLink").field(&self.0.as_raw_fd()).finish()
    }
}

impl From<DeviceFd> for KvmLink {
    /// For a VMM that has made the VM's VFIO device itself: KVM makes one for each VM.
    fn from(device: DeviceFd) -> Self {
        Self(device)
    }
}

impl KvmLink {
    /// Makes the device, by `KVM_CREATE_DEVICE`. A VM has one for all its life, whatever devices
    /// come and go.
    ///
    /// # Errors
    ///
    /// `ENODEV` where KVM is built without it, `EBUSY` where the VM has one already.
    pub fn new(vm: &VmFd) -> io::Result<Self> {
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
