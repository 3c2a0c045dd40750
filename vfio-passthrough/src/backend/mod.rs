//! The port to the kernel: two traits, for an I/O address space and for a device, and their
//! implementations.
//!
//! The module `type1` implements an address space on VFIO's legacy interface (`/dev/vfio/vfio`,
//! type1v2), the module `iommufd` on iommufd (`/dev/iommu`). [`context`](crate::context) implements
//! a device, of a group (`/dev/vfio/N`) or by its own node (`/dev/vfio/devices/vfioN`). All
//! `unsafe` of the crate's core is in this folder. The code above it is safe code on these two
//! traits.

mod address_space;
mod adjacent;
mod description;
mod device;
mod info;
pub(crate) mod ioctl;
pub(crate) mod iommufd;
mod kernel_mapping;
mod limits;
mod mmap;
mod retry;
pub mod sysfs;
pub(crate) mod type1;

pub use address_space::AddressSpace;
pub use description::{DeviceFlags, IommuInfo, IrqFlags, IrqInfo, RegionFlags, RegionInfo};
pub use device::{BusMember, Device, FewerVectors, SetIrqs};
pub use iommufd::IommufdError;
pub use mmap::RegionMmap;
pub use type1::ContainerError;

pub(crate) use adjacent::AdjacentMemory;
pub(crate) use device::{file_position, mmap_position};
pub(crate) use kernel_mapping::KernelMapping;
pub(crate) use limits::raise_locked_memory;
pub(crate) use mmap::{ExportedMmap, host_page_size};
pub(crate) use retry::{counted, is_locked, retry_while_locked};
