//! Virtual machines of KVM, by the calls of linux/kvm.h.

use std::io;
use std::os::fd::RawFd;

use vfio_model::{Fd, Irqfd};

use super::ioctl::{self, Argument, ioctl};
use super::{open, unsigned_of};

/// `_IO(0xae, n)`, and `_IOWR` and `_IOW` with the size of the struct.
const KVM_CREATE_VM: u32 = 0xae01;
const KVM_IRQFD: u32 = 0x4020_ae76;
const KVM_CREATE_DEVICE: u32 = 0xc00c_aee0;
const KVM_SET_DEVICE_ATTR: u32 = 0x4018_aee1;

const KVM_DEV_TYPE_VFIO: u32 = 4;
const KVM_DEV_VFIO_FILE: u32 = 1;

/// Adds a file to a VFIO device of KVM.
pub const ADD: u64 = 1;
/// Removes a file.
pub const DEL: u64 = 2;

/// A virtual machine with the interrupt controller of the kernel, and its VFIO device.
pub fn machine() -> io::Result<(RawFd, RawFd)> {
    let kvm = open("/dev/kvm")?;
    let machine = ioctl(kvm, KVM_CREATE_VM, Argument::Number(0));
    ioctl::close(kvm)?;
    let machine = machine?;
    let device =
        create_interrupt_controller(machine).and_then(|()| device(machine, KVM_DEV_TYPE_VFIO));
    if device.is_err() {
        ioctl::close(machine)?;
    }
    device.map(|device| (machine, device))
}

#[cfg(target_arch = "x86_64")]
fn create_interrupt_controller(machine: RawFd) -> io::Result<()> {
    const KVM_CREATE_IRQCHIP: u32 = 0xae60;
    ioctl(machine, KVM_CREATE_IRQCHIP, Argument::Number(0)).map(|_| ())
}

/// A GICv3. KVM takes irqfds once it is initialized (`kvm_arch_intc_initialized`), which needs no
/// vCPU.
#[cfg(target_arch = "aarch64")]
fn create_interrupt_controller(machine: RawFd) -> io::Result<()> {
    const KVM_DEV_TYPE_ARM_VGIC_V3: u32 = 7;
    const KVM_DEV_ARM_VGIC_GRP_CTRL: u32 = 4;
    const KVM_DEV_ARM_VGIC_CTRL_INIT: u64 = 0;
    let gic = device(machine, KVM_DEV_TYPE_ARM_VGIC_V3)?;
    let done = set_attribute(gic, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, 0);
    ioctl::close(gic).and(done)
}

fn device(machine: RawFd, kind: u32) -> io::Result<RawFd> {
    // struct kvm_create_device: type, fd (out), flags.
    let mut bytes: Vec<u8> = [kind, 0, 0].into_iter().flat_map(u32::to_ne_bytes).collect();
    ioctl(machine, KVM_CREATE_DEVICE, Argument::Bytes(&mut bytes))?;
    let fd = bytes.get(4..).and_then(|bytes| bytes.first_chunk());
    Ok(fd.map_or(-1, |fd| RawFd::from_ne_bytes(*fd)))
}

/// Adds a file to a VFIO device, or removes it.
pub fn change_file(device: Fd, change: u64, file: Fd) -> io::Result<()> {
    let address = std::ptr::from_ref(&file.0).expose_provenance() as u64;
    set_attribute(device.0, KVM_DEV_VFIO_FILE, change, address)
}

fn set_attribute(device: RawFd, group: u32, attribute: u64, address: u64) -> io::Result<()> {
    // struct kvm_device_attr: flags, group, attribute, address.
    let header = [0, group].into_iter().flat_map(u32::to_ne_bytes);
    let rest = [attribute, address].into_iter().flat_map(u64::to_ne_bytes);
    let mut bytes: Vec<u8> = header.chain(rest).collect();
    ioctl(device, KVM_SET_DEVICE_ATTR, Argument::Bytes(&mut bytes)).map(|_| ())
}

/// Assigns or removes an irqfd of a machine.
pub fn irqfd(machine: RawFd, call: &Irqfd) -> io::Result<()> {
    let (eventfd, resample) = (unsigned_of(call.eventfd), unsigned_of(call.resample));
    let words = [eventfd, call.gsi, call.flags, resample, 0, 0, 0, 0];
    let mut bytes: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
    ioctl(machine, KVM_IRQFD, Argument::Bytes(&mut bytes)).map(|_| ())
}
