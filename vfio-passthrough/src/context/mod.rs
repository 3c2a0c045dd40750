//! The I/O address space of a guest's devices, and the devices in it.
//!
//! [`IommuContext`] opens containers, attaches groups and opens devices, in the order that the
//! kernel requires: group, status, `SET_CONTAINER`, `SET_IOMMU` once for each container, the
//! existing mappings, the link to the hypervisor, and then the device. The device comes last
//! because some drivers need the VM when their device is opened. No driver for PCI devices on x86
//! does: there a VMM can link after it opened the devices, so that no device holds the VM
//! (vfio_device_get_kvm_safe), and `unlink` before it closes them.
//!
//! Several threads may open devices at the same time, and close them: no lock is held while the
//! kernel resets a device. A VMM opens all its devices side by side, in the time of one.
//!
//! With iommufd the order is: IOAS, the device's node, the link to the hypervisor,
//! `BIND_IOMMUFD`, which opens the device, and `ATTACH_IOMMUFD_PT`.

mod bridges;
mod cdevs;
mod containers;
mod device;
mod drivers;
mod error;
mod groups;
mod iommu_context;
mod linked;
mod nodes;
mod options;
mod prepared;
mod shared;
mod vf_token;

pub use device::AssignedDevice;
pub use error::Error;
pub use iommu_context::IommuContext;
pub use nodes::Nodes;
pub use options::DeviceOptions;
pub use prepared::PreparedDevice;
pub use vf_token::{ParseVfTokenError, VfToken, VfTokenProblem};
