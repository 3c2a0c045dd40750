//! KVM's VFIO device, which reports IOMMU groups to KVM (Documentation/virt/kvm/devices/vfio.rst).

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

/// KVM's VFIO device of one VM. It reports the VM's IOMMU groups to KVM. KVM can then post
/// interrupts of assigned devices to a running vCPU, and non-coherent DMA works.
pub struct KvmLink(DeviceFd);

impl fmt::Debug for KvmLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KvmLink").field(&self.0.as_raw_fd()).finish()
    }
}

impl From<DeviceFd> for KvmLink {
    /// Takes the VM's VFIO device from a VMM that has made it: KVM allows one for each VM.
    fn from(device: DeviceFd) -> Self {
        Self(device)
    }
}

impl KvmLink {
    /// Makes the device, by `KVM_CREATE_DEVICE`. A VM has one for its whole life, independent of
    /// its assigned devices.
    ///
    /// # Errors
    ///
    /// `ENODEV` if KVM is built without it, `EBUSY` if the VM already has one.
    pub fn new(vm: &VmFd) -> io::Result<Self> {
        let mut device =
            kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_VFIO, fd: 0, flags: 0 };
        Ok(Self(vm.create_device(&mut device).map_err(errno)?))
    }

    /// Sets an attribute. Before Linux 6.1 their names were `KVM_DEV_VFIO_GROUP*`, with the same
    /// numbers.
    fn set(&self, attr: u32, group: BorrowedFd<'_>) -> io::Result<()> {
        let fd = group.as_raw_fd();
        let attribute = kvm_device_attr {
            flags: 0,
            group: KVM_DEV_VFIO_FILE,
            attr: attr.into(),
            // During the call the kernel reads an int at this address.
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
