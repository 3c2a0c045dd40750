//! What the guest is: its layout, its memory, what it boots, its fixed devices and its CPUs.

pub(crate) mod boot;
pub(crate) mod console;
pub(crate) mod cpuid;
pub(crate) mod layout;
pub(crate) mod machine;
pub(crate) mod memory;
pub(crate) mod registers;
pub(crate) mod vcpus;
