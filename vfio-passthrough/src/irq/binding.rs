//! The interrupts of one function, as they are bound in the host.

use std::io;
use std::sync::Arc;

use vfio_bindings::bindings::vfio::VFIO_PCI_MSIX_IRQ_INDEX;
use vmm_sys_util::eventfd::EventFd;

use super::plan::{Growth, HostState, Step, plan};
use crate::backend::{Device, IrqFlags, IrqInfo, SetIrqs};
use crate::host::MsiVectors;
use crate::pci::msix::MsixState;

/// What a step was about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host VMM could not deliver vectors to the guest.
    #[error("cannot deliver MSI-X vectors to the guest: {0}")]
    Deliver(#[source] io::Error),
    /// No eventfd could be made.
    #[error("cannot make an eventfd for MSI-X vector {vector}: {source}")]
    Eventfd {
        /// The vector.
        vector: u16,
        /// Why: `EMFILE` where the limit on open files is too low.
        source: io::Error,
    },
    /// VFIO refused.
    #[error("VFIO_DEVICE_SET_IRQS (MSI-X, {what}): {source}")]
    SetIrqs {
        /// What was asked.
        what: String,
        /// Why.
        source: io::Error,
    },
}

/// MSI-X of one function, bound in the host. Dropping it turns MSI-X off, then gives the vectors back.
pub struct MsixBinding {
    state: HostState,
    growth: Growth,
    vectors: Box<dyn MsiVectors>,
    device: Arc<dyn Device>,
}

impl MsixBinding {
    /// Nothing bound yet. `irq` is VFIO's description of the MSI-X index.
    pub fn new(device: Arc<dyn Device>, irq: IrqInfo, vectors: Box<dyn MsiVectors>) -> Self {
        let fixed = irq.flags.contains(IrqFlags::NORESIZE);
        let growth = if fixed { Growth::Fixed } else { Growth::Dynamic };
        Self {
            state: HostState::default(),
            growth,
            vectors,
            device,
        }
    }

    /// Makes the host agree with what the guest programmed. After a failure the next call tries again what is missing.
    ///
    /// # Errors
    ///
    /// See [`Error`]; steps before the failed one stay done.
    pub fn reconcile(&mut self, guest: &MsixState) -> Result<(), Error> {
        for step in plan(guest, &self.state, self.growth) {
            self.carry_out(&step)?;
            self.state.after(&step);
        }
        Ok(())
    }

    /// True where the vector fired and was not delivered.
    pub fn is_pending(&self, vector: u16) -> bool {
        self.state.bound.contains(&vector) && self.vectors.is_pending(vector)
    }

    fn carry_out(&mut self, step: &Step) -> Result<(), Error> {
        match step {
            Step::Deliver(changes) => self.vectors.update(changes).map_err(Error::Deliver),
            // A first vector without an eventfd turns MSI-X on and binds nothing (vfio_pci_set_msi_trigger).
            Step::EnableEmpty => self.trigger(0, &[None]),
            Step::Bind(vectors) => {
                let fds = vectors
                    .clone()
                    .map(|vector| self.eventfd(vector))
                    .collect::<Result<Vec<_>, _>>()?;
                self.trigger(vectors.start, &fds)
            }
            Step::Disable => {
                let call = SetIrqs::Disable {
                    index: VFIO_PCI_MSIX_IRQ_INDEX,
                };
                let result = self.device.set_irqs(call);
                result.map_err(|source| Error::SetIrqs {
                    what: "disable".to_owned(),
                    source,
                })?;
                // What was pending is gone with the table's state (PCI 6.8.2).
                self.state
                    .bound
                    .iter()
                    .for_each(|vector| self.vectors.clear_pending(*vector));
                Ok(())
            }
        }
    }

    fn eventfd(&mut self, vector: u16) -> Result<Option<Arc<EventFd>>, Error> {
        self.vectors
            .trigger(vector)
            .map(Some)
            .map_err(|source| Error::Eventfd { vector, source })
    }

    fn trigger(&self, start: u16, eventfds: &[Option<Arc<EventFd>>]) -> Result<(), Error> {
        let call = SetIrqs::Trigger {
            index: VFIO_PCI_MSIX_IRQ_INDEX,
            start: u32::from(start),
            eventfds,
        };
        let what = || format!("{} vectors from {start} on", eventfds.len());
        self.device
            .set_irqs(call)
            .map_err(|source| Error::SetIrqs { what: what(), source })
    }
}

impl Drop for MsixBinding {
    fn drop(&mut self) {
        // An empty table that is off is what turns everything off, in the right order.
        if let Err(error) = self.reconcile(&MsixState::new(0)) {
            log::error!("interrupts stay bound until the device is closed: {error}");
        }
    }
}
