//! System calls of an x86-64 VMM that other architectures do without, or have under another name.

use kvm_bindings::{kvm_cpuid2, kvm_msrs, kvm_regs, kvm_sregs};

use crate::host::seccomp::row::{Row, calls, kvm, kvm_gives, kvm_takes};

/// Requests of a vCPU's thread.
pub(crate) const VCPU_REQUESTS: &[Row] = &[
    // After a pause.
    kvm("KVM_KVMCLOCK_CTRL", 0xad),
    // The instruction pointer for an error message.
    kvm_gives::<kvm_regs>("KVM_GET_REGS", 0x81),
];

/// Further calls of the main thread.
pub(crate) const MAIN: &[Row] = calls![SYS_unlink SYS_epoll_wait SYS_getpgrp];

/// Further requests of the main thread.
pub(crate) const MAIN_REQUESTS: &[Row] = &[
    kvm("KVM_SET_TSS_ADDR", 0x47),
    kvm("KVM_CREATE_IRQCHIP", 0x60),
    kvm_takes::<kvm_regs>("KVM_SET_REGS", 0x82),
    kvm_gives::<kvm_sregs>("KVM_GET_SREGS", 0x83),
    kvm_takes::<kvm_sregs>("KVM_SET_SREGS", 0x84),
    kvm_takes::<kvm_msrs>("KVM_SET_MSRS", 0x89),
    kvm_takes::<kvm_cpuid2>("KVM_SET_CPUID2", 0x90),
];

/// Calls of the control socket's thread.
pub(crate) const CONTROL: &[Row] = calls![SYS_poll];
