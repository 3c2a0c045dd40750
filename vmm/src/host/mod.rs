//! Resources of the host: KVM, files, memory, logs, and the restrictions of the VMM's threads.

pub(crate) mod arch;
pub(crate) mod epoll;
pub(crate) mod files;
pub(crate) mod hugepages;
pub(crate) mod interrupts;
pub(crate) mod kvm;
pub(crate) mod landlock;
pub(crate) mod limits;
pub(crate) mod logs;
pub(crate) mod memory;
pub(crate) mod passed_fds;
pub(crate) mod pci_path;
pub(crate) mod seccomp;
pub(crate) mod signals;
