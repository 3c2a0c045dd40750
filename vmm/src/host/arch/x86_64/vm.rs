//! Creates a VM with the interrupt controllers of a PC.

use std::sync::Arc;

use kvm_ioctls::{Cap, Kvm, VmFd};

use crate::counters::Calls;
use crate::error::Error;

/// Three pages that KVM uses on Intel hosts for real mode: below 4 GiB, apart from all guest
/// memory.
const TSS: usize = 0xfffb_d000;

/// The newest required capability. A KVM that has this capability (Linux 3.2) also has user memory
/// regions, in-kernel interrupt controllers, irqfds and extended CPUID.
pub(crate) const NEEDED: Cap = Cap::TscDeadlineTimer;
pub(crate) const NEEDED_NAME: &str = "the TSC deadline timer (KVM_CAP_TSC_DEADLINE_TIMER)";
pub(crate) const NEEDED_LINUX: &str = "3.2";

/// The remedy if this machine has no KVM.
pub(crate) const MISSING_REMEDY: &str = "load the module with: modprobe kvm_intel (or kvm_amd); KVM \
    requires VT-x or SVM enabled in the firmware, or nested virtualization if this machine is a guest";

/// Creates a VM with PIC, IOAPIC and local APICs in the kernel.
///
/// The VM has no PIT: Linux uses kvmclock as clock and the TSC deadline as timer, and does not
/// probe for a PIT with hardware-reduced ACPI.
pub(crate) fn create_vm(kvm: &Kvm, calls: &Calls) -> Result<Arc<VmFd>, Error> {
    let vm = kvm.create_vm().map_err(Error::kvm("KVM_CREATE_VM"))?;
    calls.add("create_vm", 1);
    vm.set_tss_address(TSS).map_err(Error::kvm("KVM_SET_TSS_ADDR"))?;
    calls.add("set_tss_addr", 1);
    vm.create_irq_chip().map_err(Error::kvm("KVM_CREATE_IRQCHIP"))?;
    calls.add("create_irqchip", 1);
    Ok(Arc::new(vm))
}
