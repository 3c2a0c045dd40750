//! iommufd (`/dev/iommu`, linux/iommufd.h): an I/O address space (IOAS), and the devices that are
//! bound by their character devices (`/dev/vfio/devices/vfioN`).

mod cdev;
mod ioas;

pub use ioas::IommufdError;

pub(crate) use cdev::{attach_ioas, bind};
pub(crate) use ioas::Ioas;
