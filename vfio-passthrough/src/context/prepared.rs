//! A device that is ready to be opened.

use std::fmt;
use std::sync::Arc;

use super::bridges::Behind;
use super::cdevs::CdevAttachment;
use super::device::AssignedDevice;
use super::error::Error;
use super::shared::Membership;
use super::vf_token::VfToken;
use crate::address::PciAddress;
use crate::counters::VfioCalls;

/// A device that is ready to be opened ([`IommuContext::prepare_device`]). With type1 its group is
/// attached, so that memory can be mapped. With iommufd its node is open. The hypervisor is linked.
///
/// [`IommuContext::prepare_device`]: super::IommuContext::prepare_device
pub struct PreparedDevice {
    pub(super) address: PciAddress,
    pub(super) vf_token: Option<VfToken>,
    pub(super) calls: Arc<VfioCalls>,
    pub(super) behind: Behind,
    pub(super) attachment: Prepared,
}

pub(super) enum Prepared {
    Type1(Membership),
    Iommufd(CdevAttachment),
}

impl fmt::Debug for PreparedDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PreparedDevice").field("address", &self.address).finish_non_exhaustive()
    }
}

impl PreparedDevice {
    /// Opens the device. The kernel resets it if it can (`vfio_pci_core_enable`), which takes 100
    /// ms: the function then has its power-on state.
    ///
    /// Threads may open several devices at the same time: all of them take as long as one. A
    /// physical function that gets a VF token is opened before the virtual functions that are
    /// opened with that token. Newer kernels reset the functions behind one bridge one after
    /// another (`pci_try_reset_function`); this call waits for its turn.
    ///
    /// # Errors
    ///
    /// [`Error::OpenDevice`], [`Error::VfToken`]; with iommufd [`Error::DeviceBusy`] and
    /// [`Error::NotReady`] too. Nothing stays open.
    pub fn open(self) -> Result<Arc<AssignedDevice>, Error> {
        let Self { address, vf_token, calls, behind, attachment } = self;
        let device = match attachment {
            Prepared::Type1(mut membership) => {
                membership.open(address, vf_token)?;
                AssignedDevice::open(membership, address, (calls, behind))
            }
            Prepared::Iommufd(cdev) => {
                cdev.bind(vf_token)?;
                AssignedDevice::open(cdev, address, (calls, behind))
            }
        };
        Ok(Arc::new(device?))
    }
}
