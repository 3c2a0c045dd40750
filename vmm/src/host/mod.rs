//! What the VMM has of the host: KVM, files, limits of what its threads may do, and what the host
//! says of itself.

pub(crate) mod epoll;
pub(crate) mod files;
pub(crate) mod hugepages;
pub(crate) mod interrupts;
pub(crate) mod kvm;
pub(crate) mod landlock;
pub(crate) mod logs;
pub(crate) mod memory;
pub(crate) mod passed_fds;
pub(crate) mod pci_path;
pub(crate) mod seccomp;
pub(crate) mod signals;
