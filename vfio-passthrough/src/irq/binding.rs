//! One kind of message-signalled interrupts of a function, MSI or MSI-X, as it is bound in the host.

use std::fmt;
use std::sync::Arc;

use vfio_bindings::bindings::vfio::{VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX};
use vmm_sys_util::eventfd::EventFd;

use super::Error;
use super::plan::{Growth, HostState, Step, Wanted, plan};
use crate::address::PciAddress;
use crate::backend::{Device, IrqFlags, IrqInfo, SetIrqs};
use crate::host::MsiVectors;

/// A kind of interrupt of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The pin.
    Intx,
    /// Messages, up to 32.
    Msi,
    /// Messages by a table, up to 2048.
    Msix,
    /// None of the guest's: the device tells the host of an uncorrectable error (AER).
    Error,
    /// None of the guest's: the host asks for the device.
    Request,
}

impl Kind {
    /// VFIO's number of it.
    pub fn index(self) -> u32 {
        match self {
            Self::Intx => vfio_bindings::bindings::vfio::VFIO_PCI_INTX_IRQ_INDEX,
            Self::Msi => VFIO_PCI_MSI_IRQ_INDEX,
            Self::Msix => VFIO_PCI_MSIX_IRQ_INDEX,
            Self::Error => vfio_bindings::bindings::vfio::VFIO_PCI_ERR_IRQ_INDEX,
            Self::Request => vfio_bindings::bindings::vfio::VFIO_PCI_REQ_IRQ_INDEX,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Intx => "INTx",
            Self::Msi => "MSI",
            Self::Msix => "MSI-X",
            Self::Error => "error",
            Self::Request => "request",
        })
    }
}

/// MSI or MSI-X of one function. Dropping it turns it off, then gives the vectors back.
pub struct Binding {
    address: PciAddress,
    kind: Kind,
    state: HostState,
    growth: Growth,
    vectors: Box<dyn MsiVectors>,
    device: Arc<dyn Device>,
}

impl Binding {
    /// Nothing bound yet. `irq` is VFIO's description of the kind's index.
    pub fn new(
        address: PciAddress,
        kind: Kind,
        device: Arc<dyn Device>,
        irq: IrqInfo,
        vectors: Box<dyn MsiVectors>,
    ) -> Self {
        // MSI vectors are one block that is allocated when MSI is turned on (vfio_msi_enable).
        let fixed = kind == Kind::Msi || irq.flags.contains(IrqFlags::NORESIZE);
        let growth = if fixed { Growth::Fixed } else { Growth::Dynamic };
        Self { address, kind, state: HostState::default(), growth, vectors, device }
    }

    /// Makes the host agree with what the guest wants. After a failure the next call tries again what is
    /// missing.
    ///
    /// # Errors
    ///
    /// See [`Error`]; steps before the failed one stay done. Vectors that cannot be delivered are bound all
    /// the same, and collect what fires.
    pub fn reconcile(&mut self, wanted: &Wanted) -> Result<(), Error> {
        let mut result = Ok(());
        for step in plan(wanted, &self.state, self.growth) {
            match self.carry_out(&step) {
                Ok(()) => self.state.after(&step),
                Err(error) => {
                    self.state.after_failure(&step);
                    result = result.and(Err(error));
                    if !matches!(step, Step::Deliver(_)) {
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
        let kind = self.kind;
        match step {
            Step::Deliver(changes) => {
                self.vectors.update(changes).map_err(|source| Error::Deliver { kind, source })
            }
            // A first vector without an eventfd turns the kind on and binds nothing
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
                disable(&*self.device, kind)?;
                // What was pending is gone with the enable bit (PCI 6.8.2).
                self.state.bound.iter().for_each(|vector| self.vectors.clear_pending(*vector));
                Ok(())
            }
        }
    }

    fn eventfd(&mut self, vector: u16) -> Result<Arc<EventFd>, Error> {
        let kind = self.kind;
        self.vectors.trigger(vector).map_err(|source| Error::Eventfd { kind, vector, source })
    }

    fn trigger(&self, start: u16, eventfds: &[Option<Arc<EventFd>>]) -> Result<(), Error> {
        let call = SetIrqs::Trigger { index: self.kind.index(), start: u32::from(start), eventfds };
        let what = || {
            let named = eventfds.iter().flatten().count();
            format!("{named} vectors from {start} on")
        };
        self.device.set_irqs(call).map_err(|source| Error::SetIrqs {
            kind: self.kind,
            what: what(),
            source,
        })
    }
}

/// Turns an index off.
pub(super) fn disable(device: &dyn Device, kind: Kind) -> Result<(), Error> {
    let result = device.set_irqs(SetIrqs::Disable { index: kind.index() });
    result.map_err(|source| Error::SetIrqs { kind, what: "disable".to_owned(), source })
}

impl Drop for Binding {
    fn drop(&mut self) {
        let result = self.reconcile(&Wanted::default());
        // What is still delivered ends with the vectors.
        if let Some(error) = result.err().filter(|_| self.state.enabled) {
            let Self { address, kind, .. } = self;
            log::error!("{address}: {kind} stays bound until the device is closed: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Kind;

    #[test]
    fn kinds_have_the_names_that_people_know() {
        let kinds = [Kind::Intx, Kind::Msi, Kind::Msix, Kind::Error, Kind::Request];
        let names = kinds.map(|kind| kind.to_string());
        assert_eq!(names, ["INTx", "MSI", "MSI-X", "error", "request"]);
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
        let (kind, vectors) = (Kind::Msix, guest.host().msi.allocate(65)?);
        let irq = device.irq(kind.index())?;
        let mut binding = Binding::new(address, kind, device.clone(), irq, vectors);
        let message = MsiMessage { address: 0xfee0_0000, data: 7 };
        let wanted = Wanted { enabled: true, vectors: 65, deliver: [(3, message)].into() };
        binding.reconcile(&wanted).map_err(std::io::Error::other)?;
        assert_eq!((device.irqs().bound(), guest.delivered().len()), (1, 1));
        drop(binding);
        assert_eq!((device.irqs().active, guest.delivered().len()), (None, 0));
        Ok(())
    }
}
