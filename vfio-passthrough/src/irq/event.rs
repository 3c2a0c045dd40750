//! What VFIO tells the host VMM of a device: that the host asks for it (`VFIO_PCI_REQ_IRQ_INDEX`), or that it has
//! told of an uncorrectable error (`VFIO_PCI_ERR_IRQ_INDEX`). No interrupt of the guest's is either.

use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Error;
use super::binding::{Kind, disable};
use crate::address::PciAddress;
use crate::backend::{Device, SetIrqs};

/// An eventfd that VFIO signals. Dropping it takes the eventfd from VFIO.
pub struct Event {
    address: PciAddress,
    kind: Kind,
    device: Arc<dyn Device>,
    eventfd: Arc<EventFd>,
    bound: bool,
}

impl Event {
    /// Makes an eventfd and gives it to VFIO.
    ///
    /// # Errors
    ///
    /// [`Error::Eventfd`], [`Error::SetIrqs`].
    pub fn new(address: PciAddress, kind: Kind, device: Arc<dyn Device>) -> Result<Self, Error> {
        let vector = 0;
        let eventfd = EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let eventfd = eventfd.map_err(|source| Error::Eventfd { kind, vector, source })?;
        let eventfd = Arc::new(eventfd);
        let eventfds = [Some(eventfd.clone())];
        let call = SetIrqs::Trigger { index: kind.index(), start: 0, eventfds: &eventfds };
        let what = "enable".to_owned();
        device.set_irqs(call).map_err(|source| Error::SetIrqs { kind, what, source })?;
        Ok(Self { address, kind, device, eventfd, bound: true })
    }

    /// What VFIO signals.
    pub fn eventfd(&self) -> &Arc<EventFd> {
        &self.eventfd
    }

    /// Takes the eventfd from VFIO. Once it is taken, this does nothing.
    ///
    /// # Errors
    ///
    /// [`Error::SetIrqs`]: it stays, and this may be called again.
    pub fn unbind(&mut self) -> Result<(), Error> {
        if self.bound {
            disable(&*self.device, self.kind)?;
            self.bound = false;
        }
        Ok(())
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Err(error) = self.unbind() {
            let Self { address, kind, .. } = self;
            log::error!(
                "{address}: its {kind} eventfd stays bound until the device is closed: {error}"
            );
        }
    }
}

#[cfg(all(test, feature = "model"))]
mod tests {
    use super::*;
    use crate::backend::IrqFlags;
    use crate::model::{Faults, PciDevice};

    #[test]
    fn what_is_dropped_is_not_heard_any_more() -> std::io::Result<()> {
        let device = Arc::new(PciDevice::nvme(Arc::new(Faults::default()), IrqFlags::EVENTFD)?);
        let address = "01:00.0".parse().map_err(std::io::Error::other)?;
        let event =
            Event::new(address, Kind::Request, device.clone()).map_err(std::io::Error::other)?;
        assert_eq!(device.heard(), 1);
        drop(event);
        assert_eq!(device.heard(), 0);
        Ok(())
    }
}
