//! System calls of an aarch64 VMM that other architectures do without, or have under another name.
//! The kernel has only the newer of two calls here: `ppoll`, not `poll`.

use kvm_bindings::{kvm_one_reg, kvm_vcpu_init};

use crate::host::seccomp::row::{Row, calls, kvm_gives, kvm_takes};

/// Requests of a vCPU's thread.
pub(crate) const VCPU_REQUESTS: &[Row] = &[
    // The program counter for an error message.
    kvm_takes::<kvm_one_reg>("KVM_GET_ONE_REG", 0xab),
];

/// Further calls of the main thread. The C library of Debian 12 starts threads by `clone` here.
pub(crate) const MAIN: &[Row] = calls![SYS_unlinkat SYS_epoll_pwait SYS_getpgid SYS_clone];

/// Further requests of the main thread.
pub(crate) const MAIN_REQUESTS: &[Row] = &[
    kvm_takes::<kvm_one_reg>("KVM_SET_ONE_REG", 0xac),
    kvm_takes::<kvm_vcpu_init>("KVM_ARM_VCPU_INIT", 0xae),
    kvm_gives::<kvm_vcpu_init>("KVM_ARM_PREFERRED_TARGET", 0xaf),
];

/// Calls of the control socket's thread.
pub(crate) const CONTROL: &[Row] = calls![SYS_ppoll];
