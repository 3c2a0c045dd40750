//! Creates the guest's vCPUs with their CPUID.

use kvm_bindings::CpuId;
use kvm_ioctls::{VcpuFd, VmFd};

use super::cpuid;
use crate::counters::Calls;
use crate::error::Error;

/// Creates the vCPUs. All except the first wait until the guest starts them.
pub(crate) fn create(
    vm: &VmFd,
    supported: &CpuId,
    count: u8,
    calls: &Calls,
) -> Result<Vec<VcpuFd>, Error> {
    let create = |index: u8| {
        let fd = vm.create_vcpu(index.into()).map_err(Error::kvm("KVM_CREATE_VCPU"))?;
        let cpuid = cpuid::for_cpu(supported, index, count)?;
        fd.set_cpuid2(&cpuid).map_err(Error::kvm("KVM_SET_CPUID2"))?;
        Ok(fd)
    };
    ["create_vcpu", "set_cpuid2"].iter().for_each(|call| calls.add(call, count.into()));
    (0..count).map(create).collect()
}

#[cfg(test)]
mod tests {
    use kvm_bindings::KVM_MAX_CPUID_ENTRIES;

    use super::*;
    use crate::host::arch::create_vm;
    use crate::host::kvm;

    /// Checks the CPUID of 254 vCPUs as KVM returns it.
    #[test]
    fn kvm_accepts_254_cpus_with_one_topology() {
        let Ok(kvm) = kvm::open() else {
            eprintln!("NOT RUN: kvm_accepts_254_cpus_with_one_topology: /dev/kvm does not open");
            return;
        };
        const MOST: u8 = 254;
        let calls = Calls::default();
        let vm = create_vm(&kvm, &calls).unwrap();
        let supported = cpuid::supported(&kvm).unwrap();
        let vcpus = create(&vm, &supported, MOST, &calls).unwrap();
        assert_eq!(vcpus.len(), usize::from(MOST));
        for (id, vcpu) in (0_u32..).zip(&vcpus) {
            let cpuid = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).unwrap();
            let leaf = |function, index| {
                let mut entries = cpuid.as_slice().iter();
                *entries.find(|entry| entry.function == function && entry.index == index).unwrap()
            };
            assert_eq!(leaf(1, 0).ebx >> 16, id << 8 | 254, "leaf 1 of {id}");
            assert_eq!(leaf(1, 0).ecx >> 21 & 1, 1, "x2APIC");
            let levels = [0, 1].map(|index| leaf(0xb, index));
            let found =
                levels.map(|level| (level.eax & 0x1f, level.ebx & 0xffff, level.ecx, level.edx));
            assert_eq!(found, [(0, 1, 0x100, id), (8, 254, 0x201, id)], "leaf 0xb of {id}");
            assert_eq!(leaf(0x8000_0008, 0).ecx & 0xf0ff, 8 << 12 | 253);
        }
    }
}
