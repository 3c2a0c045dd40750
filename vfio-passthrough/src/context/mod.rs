//! The I/O address space of a guest's devices, and the devices in it.
//!
//! [`IommuContext`] opens containers, attaches groups and opens devices, in the order that the
//! kernel asks for: group, status, `SET_CONTAINER`, `SET_IOMMU` once for each container, what is
//! mapped already, the link to the hypervisor, and only then the device, because some drivers want
//! to know KVM when they are opened.

mod containers;
mod device;
mod error;
mod groups;
mod iommu_context;
mod shared;

pub use device::AssignedDevice;
pub use error::Error;
pub use iommu_context::IommuContext;
