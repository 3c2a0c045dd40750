//! What KVM reports of a vCPU in a way of its own on x86-64.

use devices::PowerRequest;
use kvm_ioctls::{VcpuExit, VcpuFd};

/// Where a vCPU stands, for an error.
pub(crate) fn place(vcpu: &VcpuFd) -> String {
    vcpu.get_regs().map_or(String::new(), |registers| format!(" at rip {:#x}", registers.rip))
}

/// Tells the guest's watchdogs that the vCPU was paused.
pub(crate) fn resumed(vcpu: &VcpuFd) {
    // EINVAL means no kvmclock.
    let _ = vcpu.kvmclock_ctrl();
}

/// The power request that KVM reports by an exit. On x86-64 the guest writes to registers instead.
pub(crate) fn power_request(_: &VcpuExit<'_>) -> Option<PowerRequest> {
    None
}
