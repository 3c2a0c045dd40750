//! Events that VFIO reports to the VMM: the host asks for the device (`VFIO_PCI_REQ_IRQ_INDEX`), or
//! the device reported an uncorrectable error (`VFIO_PCI_ERR_IRQ_INDEX`). The guest does not see
//! them.

use std::sync::{Arc, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::address::PciAddress;
use crate::backend::{Device, SetIrqs};
use crate::device::{FirstError, FunctionDevice};
use crate::error::Error as FunctionError;
use crate::irq::binding::disable;
use crate::irq::{Error, IrqIndex};
use crate::sync::Mutex;

/// The events of one device.
pub(super) struct HostEvents {
    /// Signalled when the host asks for the device.
    pub request: Option<Arc<EventFd>>,
    /// Signalled when the device reported an uncorrectable error.
    pub error: Option<Arc<EventFd>>,
    bound: Mutex<Vec<Event>>,
}

impl HostEvents {
    /// Binds an eventfd to each event that VFIO has for the device.
    pub fn new(device: &FunctionDevice) -> Result<Self, FunctionError> {
        let [request, error] = [event(device, IrqIndex::Request)?, event(device, IrqIndex::Error)?];
        let eventfd = |event: &Option<Event>| event.as_ref().map(|event| event.eventfd.clone());
        Ok(Self {
            request: eventfd(&request),
            error: eventfd(&error),
            bound: Mutex::new([request, error].into_iter().flatten().collect()),
        })
    }

    /// Unbinds the eventfds. They stay open for the VMM.
    pub fn unbind(&self, device: &FunctionDevice) -> Result<(), FunctionError> {
        let mut errors = FirstError::new(device);
        let mut bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        for mut event in bound.drain(..) {
            let address = event.address;
            let unbound = event.unbind();
            errors.add(unbound.map_err(|source| FunctionError::Interrupts { address, source }));
        }
        errors.into_result()
    }
}

/// Binds an event, or returns `None` if VFIO has no such event for the device.
fn event(device: &FunctionDevice, index: IrqIndex) -> Result<Option<Event>, FunctionError> {
    let address = device.address;
    let exists = match device.irq(index) {
        // VFIO has no such index for this device (vfio_pci_ioctl_get_irq_info).
        Err(FunctionError::DescribeInterrupts { source, .. })
            if source.raw_os_error() == Some(libc::EINVAL) =>
        {
            false
        }
        irq => irq?.count != 0,
    };
    let event = exists.then(|| Event::new(address, index, device.device.clone()));
    event.transpose().map_err(|source| FunctionError::Interrupts { address, source })
}

/// An eventfd that is bound to an interrupt index. Dropping it unbinds the eventfd.
struct Event {
    address: PciAddress,
    index: IrqIndex,
    device: Arc<dyn Device>,
    eventfd: Arc<EventFd>,
    bound: bool,
}

impl Event {
    /// Makes an eventfd and binds it.
    ///
    /// # Errors
    ///
    /// [`Error::Eventfd`] if no eventfd could be made, [`Error::SetIrqs`] if VFIO refused it.
    fn new(address: PciAddress, index: IrqIndex, device: Arc<dyn Device>) -> Result<Self, Error> {
        let vector = 0;
        let eventfd = EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let eventfd = eventfd.map_err(|source| Error::Eventfd { index, vector, source })?;
        let eventfd = Arc::new(eventfd);
        let eventfds = [Some(eventfd.clone())];
        let call = SetIrqs::Trigger { index: index.number(), start: 0, eventfds: &eventfds };
        let what = "enable".to_owned();
        device.set_irqs(call).map_err(|source| Error::SetIrqs { index, what, source })?;
        Ok(Self { address, index, device, eventfd, bound: true })
    }

    /// Unbinds the eventfd. After a success, later calls do nothing.
    ///
    /// # Errors
    ///
    /// [`Error::SetIrqs`]: the eventfd stays bound. The call can be repeated.
    fn unbind(&mut self) -> Result<(), Error> {
        if self.bound {
            disable(&*self.device, self.index)?;
            self.bound = false;
        }
        Ok(())
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Err(error) = self.unbind() {
            let Self { address, index, .. } = self;
            log::error!(
                "{address}: its {index} eventfd stays bound until the device is closed: {error}"
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
    fn an_event_that_is_dropped_is_unbound() -> std::io::Result<()> {
        let device = Arc::new(PciDevice::nvme(Arc::new(Faults::default()), IrqFlags::EVENTFD)?);
        let address = "01:00.0".parse().map_err(std::io::Error::other)?;
        let event = Event::new(address, IrqIndex::Request, device.clone())
            .map_err(std::io::Error::other)?;
        assert_eq!(device.heard(), 1);
        drop(event);
        assert_eq!(device.heard(), 0);
        Ok(())
    }
}
