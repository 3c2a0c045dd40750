//! The lists of allowed system calls. Each row is needed: `tests/program/seccomp.rs` removes one
//! after another, and `tests/lab` removes the rows that only an assigned device needs.

use kvm_bindings::{
    kvm_coalesced_mmio_zone, kvm_create_device, kvm_device_attr, kvm_irq_routing, kvm_irqfd,
    kvm_userspace_memory_region,
};
use vmm_sys_util::ioctl::{_IOC_READ, _IOC_WRITE};

use super::row::{KVM, Row, calls, kvm, kvm_takes, request, terminal, vfio};
use crate::config::Thread;
use crate::host::arch;

/// Calls that the C library and Rust's standard library make in every thread: memory, locks,
/// signals, the end of a thread, and the end of the process with a message or by `abort`. Every
/// thread can also close a file, if it drops the last reference.
const EVERY: &[Row] = calls![
    SYS_write SYS_close SYS_mmap SYS_munmap SYS_brk SYS_rt_sigprocmask SYS_mremap SYS_madvise
    SYS_getpid SYS_exit SYS_gettid SYS_futex SYS_tgkill SYS_exit_group SYS_sigaltstack
];

/// A debug build checks that a descriptor is open before it closes it.
#[cfg(debug_assertions)]
const CHECKED: &[Row] = calls![SYS_fcntl];
#[cfg(not(debug_assertions))]
const CHECKED: &[Row] = &[];

/// Calls that handle kicks and the guest's accesses.
const VCPU: &[Row] = calls![SYS_rt_sigreturn SYS_pread64 SYS_pwrite64 SYS_eventfd2 SYS_epoll_ctl SYS_read
        // A guest's FLR waits for the device, also after a stop of the process.
        SYS_clock_nanosleep SYS_restart_syscall];

const VCPU_REQUESTS: &[Row] = &[
    kvm("KVM_RUN", 0x80),
    // The guest enables, moves and disables BARs; vectors are bound, routed, masked and unmasked.
    kvm_takes::<kvm_userspace_memory_region>("KVM_SET_USER_MEMORY_REGION", 0x46),
    kvm_takes::<kvm_coalesced_mmio_zone>("KVM_REGISTER_COALESCED_MMIO", 0x67),
    kvm_takes::<kvm_coalesced_mmio_zone>("KVM_UNREGISTER_COALESCED_MMIO", 0x68),
    kvm_takes::<kvm_irq_routing>("KVM_SET_GSI_ROUTING", 0x6a),
    kvm_takes::<kvm_irqfd>("KVM_IRQFD", 0x76),
    vfio("VFIO_DEVICE_SET_IRQS", 110),
    // FLR.
    vfio("VFIO_DEVICE_RESET", 111),
    // Maps BARs for DMA of other assigned devices. VFIO_DEVICE_PCI_HOT_RESET, which the main
    // thread uses to reset a bus, has the number of the first request.
    vfio("VFIO_IOMMU_MAP_DMA", 113),
    vfio("VFIO_IOMMU_UNMAP_DMA", 114),
    // iommufd has the same type of requests (linux/iommufd.h).
    vfio("IOMMU_IOAS_MAP", 133),
    vfio("IOMMU_IOAS_UNMAP", 134),
    vfio("IOMMU_IOAS_MAP_FILE", 143),
    vfio("VFIO_DEVICE_FEATURE", 117),
    // A device that is detached during an access of a vCPU is closed with that access: its group or
    // node is unlinked from KVM, and the group is asked whether the host has taken it.
    kvm_takes::<kvm_device_attr>("KVM_SET_DEVICE_ATTR", 0xe1),
    vfio("VFIO_GROUP_GET_STATUS", 103),
];

/// Further calls of the main thread: waits for events, starts threads, destroys the machine,
/// creates another when the guest reboots, and writes the counters.
const MAIN: &[Row] = calls![
    SYS_lseek SYS_mprotect SYS_rt_sigaction SYS_sched_getaffinity SYS_prctl
    SYS_clock_gettime SYS_set_robust_list SYS_epoll_create1 SYS_statx SYS_rseq
    SYS_seccomp SYS_clone3
];

/// Release builds need this call to duplicate eventfds; in debug builds `CHECKED` has it.
#[cfg(not(debug_assertions))]
const DUPLICATES: &[Row] = calls![SYS_fcntl];
#[cfg(debug_assertions)]
const DUPLICATES: &[Row] = &[];

const MAIN_REQUESTS: &[Row] = &[
    terminal("TCGETS", 0x01),
    terminal("TCSETS", 0x02),
    terminal("TIOCGPGRP", 0x0f),
    kvm("KVM_CREATE_VM", 0x01),
    kvm("KVM_CHECK_EXTENSION", 0x03),
    kvm("KVM_GET_VCPU_MMAP_SIZE", 0x04),
    kvm("KVM_CREATE_VCPU", 0x41),
    request("KVM_CREATE_DEVICE", _IOC_READ | _IOC_WRITE, KVM, 0xe0, size_of::<kvm_create_device>()),
    vfio("IOMMU_DESTROY", 128),
    vfio("VFIO_DEVICE_GET_REGION_INFO", 108),
    vfio("VFIO_DEVICE_GET_IRQ_INFO", 109),
    vfio("VFIO_DEVICE_GET_PCI_HOT_RESET_INFO", 112),
];

/// Calls of the control socket's thread: waits, reads a request, answers, and reads
/// `/proc/interrupts`.
const CONTROL: &[Row] = calls![
    SYS_pread64 SYS_sendto SYS_recvmsg SYS_setsockopt SYS_restart_syscall SYS_clock_gettime SYS_accept4
];

/// Further calls of that thread for devices that come and go: it opens and closes them in threads
/// side by side.
const HOT_PLUG: &[Row] = calls![
    SYS_pwrite64 SYS_eventfd2 SYS_read SYS_statx SYS_mprotect SYS_sched_getaffinity SYS_prctl
    SYS_set_robust_list SYS_rseq SYS_clone3
        // A vector's route is deferred when its device leaves; a reset waits for the kernel's lock.
        SYS_epoll_ctl SYS_clock_nanosleep
];

const CONTROL_REQUESTS: &[Row] = &[terminal("FIONBIO", 0x21)];

const HOT_PLUG_REQUESTS: &[Row] = &[
    kvm_takes::<kvm_userspace_memory_region>("KVM_SET_USER_MEMORY_REGION", 0x46),
    // Another device's BARs are placed again while its guest programs MSI-X.
    kvm_takes::<kvm_coalesced_mmio_zone>("KVM_REGISTER_COALESCED_MMIO", 0x67),
    kvm_takes::<kvm_coalesced_mmio_zone>("KVM_UNREGISTER_COALESCED_MMIO", 0x68),
    kvm_takes::<kvm_irq_routing>("KVM_SET_GSI_ROUTING", 0x6a),
    kvm_takes::<kvm_irqfd>("KVM_IRQFD", 0x76),
    request("KVM_CREATE_DEVICE", _IOC_READ | _IOC_WRITE, KVM, 0xe0, size_of::<kvm_create_device>()),
    kvm_takes::<kvm_device_attr>("KVM_SET_DEVICE_ATTR", 0xe1),
    vfio("VFIO_GET_API_VERSION", 100),
    vfio("VFIO_CHECK_EXTENSION", 101),
    vfio("VFIO_SET_IOMMU", 102),
    vfio("VFIO_GROUP_GET_STATUS", 103),
    vfio("VFIO_GROUP_SET_CONTAINER", 104),
    vfio("VFIO_GROUP_GET_DEVICE_FD", 106),
    vfio("VFIO_DEVICE_GET_INFO", 107),
    vfio("VFIO_DEVICE_GET_REGION_INFO", 108),
    vfio("VFIO_DEVICE_GET_IRQ_INFO", 109),
    vfio("VFIO_DEVICE_SET_IRQS", 110),
    // The kernel does not reset a device at its close if another one is behind its bridge.
    vfio("VFIO_DEVICE_RESET", 111),
    vfio("VFIO_DEVICE_GET_PCI_HOT_RESET_INFO", 112),
    vfio("VFIO_IOMMU_MAP_DMA", 113),
    vfio("VFIO_IOMMU_UNMAP_DMA", 114),
    // A dma-buf of a BAR (Linux 7.x).
    vfio("VFIO_DEVICE_FEATURE", 117),
    vfio("VFIO_DEVICE_BIND_IOMMUFD", 118),
    vfio("VFIO_DEVICE_ATTACH_IOMMUFD_PT", 119),
    vfio("IOMMU_DESTROY", 128),
    vfio("IOMMU_IOAS_ALLOC", 129),
    vfio("IOMMU_IOAS_IOVA_RANGES", 132),
    vfio("IOMMU_IOAS_MAP", 133),
    vfio("IOMMU_IOAS_UNMAP", 134),
    vfio("IOMMU_IOAS_MAP_FILE", 143),
];

/// The list of a thread.
pub(crate) fn of(thread: Thread) -> impl Iterator<Item = &'static Row> {
    let own: &[&[Row]] = match thread {
        Thread::Main => &[
            VCPU,
            VCPU_REQUESTS,
            arch::VCPU_REQUESTS,
            MAIN,
            arch::MAIN,
            DUPLICATES,
            MAIN_REQUESTS,
            arch::MAIN_REQUESTS,
        ],
        Thread::Vcpu => &[VCPU, VCPU_REQUESTS, arch::VCPU_REQUESTS],
        Thread::Control => {
            &[CONTROL, arch::CONTROL, CONTROL_REQUESTS, DUPLICATES, HOT_PLUG, HOT_PLUG_REQUESTS]
        }
    };
    [EVERY, CHECKED].into_iter().chain(own.iter().copied()).flatten()
}

/// The name of an ioctl's request, if a list has it.
pub(crate) fn request_name(number: u32) -> Option<&'static str> {
    let lists = [
        VCPU_REQUESTS,
        arch::VCPU_REQUESTS,
        MAIN_REQUESTS,
        arch::MAIN_REQUESTS,
        CONTROL_REQUESTS,
        HOT_PLUG_REQUESTS,
    ];
    let mut rows = lists.into_iter().flatten();
    rows.find(|row| row.request == Some(number)).map(|row| row.name)
}
