//! MSI or MSI-X of one function, as it is bound in the host.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::error::Error;
use super::index::IrqIndex;
use super::plan::{BoundState, Growth, Step, plan};
use crate::address::PciAddress;
use crate::backend::{Device, IrqFlags, IrqInfo, SetIrqs};
use crate::host::MsiVectors;
use crate::pci::message::ProgrammedVectors;

/// MSI or MSI-X of one function. Dropping it turns it off, then gives the vectors back.
pub struct Binding {
    address: PciAddress,
    index: IrqIndex,
    state: BoundState,
    growth: Growth,
    vectors: Box<dyn MsiVectors>,
    device: Arc<dyn Device>,
}

impl Binding {
    /// Nothing bound yet. `irq` is VFIO's description of the index.
    pub fn new(
        address: PciAddress,
        index: IrqIndex,
        device: Arc<dyn Device>,
        irq: IrqInfo,
        vectors: Box<dyn MsiVectors>,
    ) -> Self {
        // MSI vectors are one block that is allocated when MSI is turned on (vfio_msi_enable).
        let fixed = index == IrqIndex::Msi || irq.flags.contains(IrqFlags::NORESIZE);
        let growth = if fixed { Growth::Fixed } else { Growth::Dynamic };
        Self { address, index, state: BoundState::default(), growth, vectors, device }
    }

    /// Makes the host agree with what the guest wants. After a failure the next call tries again what is
    /// missing.
    ///
    /// # Errors
    ///
    /// See [`Error`]; steps before the failed one stay done. Vectors that cannot be delivered are bound all
    /// the same, and collect what fires.
    pub fn reconcile(&mut self, wanted: &ProgrammedVectors) -> Result<(), Error> {
        let mut result = Ok(());
        for step in plan(wanted, &self.state, self.growth) {
            match self.carry_out(&step) {
                Ok(()) => self.state.after(&step),
                Err(error) => {
                    self.state.after_failure(&step);
                    result = result.and(Err(error));
                    if !matches!(step, Step::Route(_)) {
                        break;
                    }
                }
            }
        }
        result
    }

    /// VFIO has it on.
    pub fn is_enabled(&self) -> bool {
        self.state.enabled
    }

    /// VFIO has the vector's eventfd.
    pub fn is_bound(&self, vector: u16) -> bool {
        self.state.bound.contains(&vector)
    }

    /// True where the vector is bound, and fired and was not delivered.
    pub fn is_pending(&self, vector: u16) -> bool {
        self.is_bound(vector) && self.vectors.is_pending(vector)
    }

    fn carry_out(&mut self, step: &Step) -> Result<(), Error> {
        let index = self.index;
        match step {
            Step::Route(changes) => {
                self.vectors.update(changes).map_err(|source| Error::Route { index, source })
            }
            // A first vector without an eventfd turns the index on and binds nothing
            // (vfio_pci_set_msi_trigger).
            Step::EnableEmpty => self.trigger(0, &[None]),
            Step::Bind(vectors) => {
                let (Some(first), Some(last)) = (vectors.first(), vectors.last()) else {
                    return Ok(());
                };
                let mut eventfds = Vec::new();
                for vector in *first..=*last {
                    let named = vectors.binary_search(&vector).is_ok();
                    eventfds.push(if named { Some(self.eventfd(vector)?) } else { None });
                }
                self.trigger(*first, &eventfds)
            }
            Step::Disable => {
                disable(&*self.device, index)?;
                // What was pending is gone with the enable bit (PCI 6.8.2).
                self.state.bound.iter().for_each(|vector| self.vectors.clear_pending(*vector));
                Ok(())
            }
        }
    }

    fn eventfd(&mut self, vector: u16) -> Result<Arc<EventFd>, Error> {
        let index = self.index;
        self.vectors.trigger(vector).map_err(|source| Error::Eventfd { index, vector, source })
    }

    fn trigger(&self, start: u16, eventfds: &[Option<Arc<EventFd>>]) -> Result<(), Error> {
        let call =
            SetIrqs::Trigger { index: self.index.number(), start: u32::from(start), eventfds };
        let what = || {
            let named = eventfds.iter().flatten().count();
            format!("{named} vectors from {start} on")
        };
        self.device.set_irqs(call).map_err(|source| Error::SetIrqs {
            index: self.index,
            what: what(),
            source,
        })
    }
}

/// Turns an index off.
pub(crate) fn disable(device: &dyn Device, index: IrqIndex) -> Result<(), Error> {
    let result = device.set_irqs(SetIrqs::Disable { index: index.number() });
    result.map_err(|source| Error::SetIrqs { index, what: "disable".to_owned(), source })
}

impl Drop for Binding {
    fn drop(&mut self) {
        let result = self.reconcile(&ProgrammedVectors::default());
        // What is still delivered ends with the vectors.
        if let Some(error) = result.err().filter(|_| self.state.enabled) {
            let Self { address, index, .. } = self;
            log::error!("{address}: {index} stays bound until the device is closed: {error}");
        }
    }
}

#[cfg(all(test, feature = "model"))]
mod dropped {
    use super::*;
    use crate::host::MsiMessage;
    use crate::model::{Faults, Guest, PciDevice};

    #[test]
    fn vectors_that_are_dropped_are_off_and_not_delivered() -> std::io::Result<()> {
        let faults = Arc::new(Faults::default());
        let device = Arc::new(PciDevice::nvme(faults.clone(), IrqFlags::EVENTFD)?);
        let guest = Guest::new(faults);
        let address = "01:00.0".parse().map_err(std::io::Error::other)?;
        let (index, vectors) = (IrqIndex::Msix, guest.host().msi.allocate(65)?);
        let irq = device.irq(index.number())?;
        let mut binding = Binding::new(address, index, device.clone(), irq, vectors);
        let message = MsiMessage { address: 0xfee0_0000, data: 7 };
        let wanted =
            ProgrammedVectors { enabled: true, vectors: 65, unmasked: [(3, message)].into() };
        binding.reconcile(&wanted).map_err(std::io::Error::other)?;
        assert_eq!((device.irqs().bound.len(), guest.delivered().len()), (1, 1));
        drop(binding);
        assert_eq!((device.irqs().active, guest.delivered().len()), (None, 0));
        Ok(())
    }
}
