//! Creates the GICv3 and its ITS in the kernel (Documentation/virt/kvm/devices/arm-vgic-v3.rst and
//! arm-vgic-its.rst). Devices send their messages to the ITS.

use kvm_bindings::{
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_VGIC_ITS_ADDR_TYPE, KVM_VGIC_V3_ADDR_TYPE_DIST,
    KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::{DeviceFd, VmFd};

use super::places::{DISTRIBUTOR, INTERRUPT_IDS, ITS, redistributors};
use crate::counters::Calls;
use crate::error::Error;

/// Creates both for `cpus` vCPUs, which exist already: the initialization counts them. KVM keeps
/// them as long as the VM.
pub(super) fn create(vm: &VmFd, cpus: u8, calls: &Calls) -> Result<(), Error> {
    let gic = device(vm, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, calls)?;
    let region = redistributor_region(cpus);
    set(&gic, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, &DISTRIBUTOR.start)?;
    set(&gic, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION, &region)?;
    set(&gic, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, &INTERRUPT_IDS)?;
    init(&gic)?;
    let its = device(vm, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS, calls)?;
    set(&its, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_ITS_ADDR_TYPE, &ITS.start)?;
    init(&its)
}

/// Bits 63:52 are the number of redistributors, bits 51:16 the address, bits 11:0 the index of the
/// region.
fn redistributor_region(cpus: u8) -> u64 {
    u64::from(cpus) << 52 | redistributors(cpus).start
}

fn device(vm: &VmFd, kind: u32, calls: &Calls) -> Result<DeviceFd, Error> {
    let mut device = kvm_create_device { type_: kind, ..Default::default() };
    calls.add("create_device", 1);
    vm.create_device(&mut device).map_err(Error::kvm("KVM_CREATE_DEVICE of a GICv3 with ITS"))
}

fn set<T>(device: &DeviceFd, group: u32, attribute: u32, value: &T) -> Result<(), Error> {
    let addr = std::ptr::from_ref(value).addr() as u64;
    let attribute = kvm_device_attr { group, attr: attribute.into(), addr, flags: 0 };
    device.set_device_attr(&attribute).map_err(Error::kvm("KVM_SET_DEVICE_ATTR of the GIC"))
}

fn init(device: &DeviceFd) -> Result<(), Error> {
    set(device, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, &0_u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_region_has_a_count_and_an_aligned_address() {
        assert_eq!(redistributor_region(8), 0x0080_0000_080a_0000);
    }
}
