//! What KVM reports of a vCPU in a way of its own on aarch64.

use devices::PowerRequest;
use kvm_bindings::{KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::boot::registers;

/// Where a vCPU stands, for an error.
pub(crate) fn place(vcpu: &VcpuFd) -> String {
    let mut pc = [0; 8];
    match vcpu.get_one_reg(registers::PC, &mut pc) {
        Ok(_) => format!(" at pc {:#x}", u64::from_le_bytes(pc)),
        Err(_) => String::new(),
    }
}

/// Does nothing: the guest's timer shows the time that passed.
pub(crate) fn resumed(_: &VcpuFd) {}

/// The power request that KVM reports by an exit: PSCI's `SYSTEM_OFF` and `SYSTEM_RESET`
/// (Documentation/virt/kvm/api.rst, 5: `KVM_EXIT_SYSTEM_EVENT`).
pub(crate) fn power_request(exit: &VcpuExit<'_>) -> Option<PowerRequest> {
    match exit {
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => Some(PowerRequest::PowerOff),
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _) => Some(PowerRequest::Reset),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_off_and_reset_are_power_requests() {
        let event = |kind| power_request(&VcpuExit::SystemEvent(kind, &[]));
        assert_eq!(event(1), Some(PowerRequest::PowerOff));
        assert_eq!(event(2), Some(PowerRequest::Reset));
        assert_eq!((event(3), power_request(&VcpuExit::Hlt)), (None, None));
    }
}
