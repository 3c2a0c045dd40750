//! Creates a VM. Its interrupt controller is a device of its own, which the guest's half of `arch`
//! creates.

use std::sync::Arc;

use kvm_ioctls::{Cap, Kvm, VmFd};

use crate::counters::Calls;
use crate::error::Error;

/// The newest required capability (Documentation/virt/kvm/api.rst, 4.82: `KVM_ARM_VCPU_PSCI_0_2`).
pub(crate) const NEEDED: Cap = Cap::ArmPsci02;
pub(crate) const NEEDED_NAME: &str = "PSCI 0.2 (KVM_CAP_ARM_PSCI_0_2)";
pub(crate) const NEEDED_LINUX: &str = "4.18";

/// The remedy if this machine has no KVM.
pub(crate) const MISSING_REMEDY: &str = "KVM is part of the kernel (CONFIG_KVM), and starts only if the \
    firmware boots the kernel at EL2: see 'dmesg | grep kvm'";

/// The address bits of a VM whose KVM has no choice of them (`KVM_CAP_ARM_VM_IPA_SIZE`).
const DEFAULT_ADDRESS_BITS: u8 = 40;
/// More bits than an IOMMU translates take more levels of page tables, and gain nothing.
const MOST_ADDRESS_BITS: u8 = 48;

/// The address bits of a VM of this host.
pub(crate) fn address_bits(kvm: &Kvm) -> u8 {
    chosen_bits(kvm).unwrap_or(DEFAULT_ADDRESS_BITS)
}

fn chosen_bits(kvm: &Kvm) -> Option<u8> {
    let bits = u8::try_from(kvm.get_host_ipa_limit()).ok().filter(|bits| *bits > 0);
    bits.map(|bits| bits.min(MOST_ADDRESS_BITS))
}

/// Creates a VM.
pub(crate) fn create_vm(kvm: &Kvm, calls: &Calls) -> Result<Arc<VmFd>, Error> {
    // 0 stands for the default.
    let bits = chosen_bits(kvm).unwrap_or(0);
    let vm = kvm.create_vm_with_ipa_size(bits.into()).map_err(Error::kvm("KVM_CREATE_VM"))?;
    calls.add("create_vm", 1);
    Ok(Arc::new(vm))
}
