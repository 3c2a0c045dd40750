//! Creates the guest's vCPUs.

use kvm_bindings::{KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, kvm_vcpu_init};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use resources::CpuReach;

use super::gic;
use crate::counters::Calls;
use crate::error::Error;
use crate::host::arch::address_bits;

/// What KVM supports of a CPU.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Supported {
    address_bits: u8,
}

/// What this host's KVM supports.
pub(crate) fn supported(kvm: &Kvm) -> Result<Supported, Error> {
    Ok(Supported { address_bits: address_bits(kvm) })
}

/// The physical addresses that the CPUs can access.
pub(crate) fn reach(supported: &Supported) -> CpuReach {
    CpuReach { address_bits: supported.address_bits, hypertransport: false }
}

/// Creates the vCPUs. All except the first wait until the guest starts them by PSCI.
pub(crate) fn create(
    vm: &VmFd,
    _: &Supported,
    count: u8,
    calls: &Calls,
) -> Result<Vec<VcpuFd>, Error> {
    let mut init = kvm_vcpu_init::default();
    vm.get_preferred_target(&mut init).map_err(Error::kvm("KVM_ARM_PREFERRED_TARGET"))?;
    let create = |index: u8| {
        let fd = vm.create_vcpu(index.into()).map_err(Error::kvm("KVM_CREATE_VCPU"))?;
        fd.vcpu_init(&with_features(init, index)).map_err(Error::kvm("KVM_ARM_VCPU_INIT"))?;
        Ok::<_, Error>(fd)
    };
    ["create_vcpu", "vcpu_init"].iter().for_each(|call| calls.add(call, count.into()));
    let vcpus = (0..count).map(create).collect::<Result<Vec<_>, _>>()?;
    gic::create(vm, count, calls)?;
    Ok(vcpus)
}

/// `init` with the features of CPU `index`.
fn with_features(mut init: kvm_vcpu_init, index: u8) -> kvm_vcpu_init {
    let off = if index == 0 { 0 } else { 1 << KVM_ARM_VCPU_POWER_OFF };
    if let Some(features) = init.features.first_mut() {
        *features |= 1 << KVM_ARM_VCPU_PSCI_0_2 | off;
    }
    init
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_cpu_runs_from_the_start() {
        let features = |index| with_features(kvm_vcpu_init::default(), index).features[0];
        assert_eq!((features(0), features(1), features(7)), (0b100, 0b101, 0b101));
    }
}
