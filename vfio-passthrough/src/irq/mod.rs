//! Interrupts: what the guest programmed and what is bound in the host are kept apart, and reconciled.
//!
//! [`plan`] is pure: from the two states to the steps between them. [`binding`] carries them out for MSI and
//! MSI-X, [`intx`] is the pin, [`event`] what is meant for the host VMM and not for the guest. A function has one kind on at a time (PCI 6.8); [`Interrupts`] sees to it.

pub mod binding;
pub mod event;
pub mod intx;
pub mod plan;

use std::io;

use binding::{Binding, Kind};
use intx::Intx;
use plan::Wanted;

/// What went wrong with interrupts.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host VMM could not deliver them to the guest.
    #[error("cannot deliver {kind} to the guest: {source}")]
    Deliver {
        /// Which kind.
        kind: Kind,
        /// Why.
        source: io::Error,
    },
    /// No eventfd could be made.
    #[error("cannot make an eventfd for {kind} vector {vector}: {source}")]
    Eventfd {
        /// Which kind.
        kind: Kind,
        /// The vector.
        vector: u16,
        /// Why: `EMFILE` where the limit on open files is too low.
        source: io::Error,
    },
    /// VFIO refused.
    #[error("VFIO_DEVICE_SET_IRQS ({kind}, {what}): {source}")]
    SetIrqs {
        /// Which kind.
        kind: Kind,
        /// What was asked.
        what: String,
        /// Why.
        source: io::Error,
    },
}

/// What the guest asks for, of each kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// The function is on, and may use its pin.
    pub intx: bool,
    /// MSI.
    pub msi: Wanted,
    /// MSI-X.
    pub msix: Wanted,
}

/// The interrupts of one function, of the kinds that it has.
#[derive(Default)]
pub struct Interrupts {
    /// The pin.
    pub intx: Option<Intx>,
    /// MSI.
    pub msi: Option<Binding>,
    /// MSI-X.
    pub msix: Option<Binding>,
}

impl Interrupts {
    /// Makes the host agree with what the guest asks for. MSI-X goes before MSI, and both before the pin;
    /// what goes off does so first.
    ///
    /// # Errors
    ///
    /// See [`Error`]. The next call tries again what is missing.
    pub fn reconcile(&mut self, demand: &Demand) -> Result<(), Error> {
        let off = Wanted::default();
        let msix = &demand.msix;
        let msi = if msix.enabled { &off } else { &demand.msi };
        let intx = demand.intx && !msix.enabled && !msi.enabled;
        let mut result = Ok(());
        if let Some(pin) = self.intx.as_mut().filter(|_| !intx) {
            result = result.and(pin.disable());
        }
        // The one that goes off comes first.
        let mut kinds = [(&mut self.msi, msi), (&mut self.msix, msix)];
        kinds.sort_by_key(|(_, wanted)| wanted.enabled);
        for (binding, wanted) in kinds {
            result =
                result.and(binding.as_mut().map_or(Ok(()), |binding| binding.reconcile(wanted)));
        }
        match self.intx.as_mut().filter(|_| intx) {
            Some(pin) => result.and(pin.enable()),
            None => result,
        }
    }
}
