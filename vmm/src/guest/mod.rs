//! The virtual machine: layout, memory, boot data, fixed devices and CPUs.

pub(crate) mod arch;
pub(crate) mod boot;
pub(crate) mod console;
pub(crate) mod layout;
pub(crate) mod machine;
pub(crate) mod memory;
pub(crate) mod vcpus;
