//! Interrupts: what the guest programmed and what is bound in the host are kept apart, and
//! reconciled.
//!
//! [`plan`] is pure: from the two states to the steps between them. `binding` carries them out for
//! MSI and MSI-X, and `intx` for the pin. A function has one of the three enabled at a time (PCI
//! 6.8).

pub(crate) mod binding;
mod error;
mod index;
pub(crate) mod intx;
pub mod plan;

pub use error::Error;
pub use index::IrqIndex;

use binding::Binding;
use intx::Intx;

use crate::pci::config::ConfigSpace;
use crate::pci::message::ProgrammedVectors;
use crate::pci::msix::{MsixLayout, MsixState, overlay_pba, pba_vectors};
use crate::pci::regs::Command;

/// The interrupts of one function: the MSI-X table that the guest programs, and what is bound in
/// the host of each kind that the function has.
#[derive(Default)]
pub(crate) struct Interrupts {
    layout: Option<MsixLayout>,
    table: MsixState,
    intx: Option<Intx>,
    msi: Option<Binding>,
    msix: Option<Binding>,
}

impl Interrupts {
    /// Nothing is programmed or bound yet. `layout` says where the structures of MSI-X are.
    pub fn new(
        layout: Option<MsixLayout>,
        (intx, msi, msix): (Option<Intx>, Option<Binding>, Option<Binding>),
    ) -> Self {
        let table = MsixState::new(layout.map_or(0, |layout| layout.vectors));
        Self { layout, table, intx, msi, msix }
    }

    /// The MSI-X table that the guest programs.
    pub fn table(&mut self) -> &mut MsixState {
        &mut self.table
    }

    /// No MSI-X vector can fire, whatever the entries of the table say.
    pub fn is_table_idle(&self) -> bool {
        self.table.is_masked_or_disabled()
    }

    /// Makes the host agree with what the guest programmed. MSI-X goes before MSI, and both before
    /// the pin; what is disabled is disabled first.
    ///
    /// # Errors
    ///
    /// See [`enum@Error`]. The next call tries again what is missing.
    pub fn reconcile(&mut self, config: &ConfigSpace) -> Result<(), Error> {
        if let Some(control) = config.msix_control() {
            self.table.write_control(control);
        }
        let msix = self.table.programmed();
        let msi = if msix.enabled { ProgrammedVectors::default() } else { config.msi_programmed() };
        // A function that decodes nothing has no driver. DisINTx is the device's: the kernel
        // honours it.
        let decodes = config.command().intersects(Command::MEMORY | Command::IO);
        self.enable(decodes && !msix.enabled && !msi.enabled, &msi, &msix)
    }

    /// Disables all of them in the host; what the guest programmed stays.
    ///
    /// # Errors
    ///
    /// See [`enum@Error`].
    pub fn disable(&mut self) -> Result<(), Error> {
        let off = ProgrammedVectors::default();
        self.enable(false, &off, &off)
    }

    fn enable(
        &mut self,
        intx: bool,
        msi: &ProgrammedVectors,
        msix: &ProgrammedVectors,
    ) -> Result<(), Error> {
        let mut result = Ok(());
        if let Some(pin) = self.intx.as_mut().filter(|_| !intx) {
            result = result.and(pin.disable());
        }
        let mut kinds = [(&mut self.msi, msi), (&mut self.msix, msix)];
        kinds.sort_by_key(|(_, programmed)| programmed.enabled);
        for (binding, programmed) in kinds {
            let reconciled = binding.as_mut().map(|binding| binding.reconcile(programmed));
            result = result.and(reconciled.unwrap_or(Ok(())));
        }
        match self.intx.as_mut().filter(|_| intx) {
            Some(pin) => result.and(pin.enable()),
            None => result,
        }
    }

    /// The MSI vectors that fired while they were masked, a bit each.
    pub fn msi_pending(&self, config: &ConfigSpace) -> u32 {
        let vectors = config.msi().map_or(0, |layout| layout.vectors());
        let is_pending =
            |vector: &u16| self.msi.as_ref().is_some_and(|binding| binding.is_pending(*vector));
        (0..vectors).filter(is_pending).fold(0, |bits, vector| bits | 1 << vector)
    }

    /// Reads pending bits of MSI-X (PCI 6.8.2.10). What a bound vector fired while it was masked is
    /// in its eventfd. The host's kernel masks a vector that is not bound in the hardware, so its
    /// bit is in the hardware's array: `hardware` reads that, at most once, and not where all
    /// vectors are bound.
    pub fn read_pba(&self, at: u64, data: &mut [u8], hardware: impl FnOnce(u64, &mut [u8])) {
        data.fill(0);
        let Some((layout, binding)) = self.layout.zip(self.msix.as_ref()) else {
            return;
        };
        let is_unbound = |vector| vector < layout.vectors && !binding.is_bound(vector);
        if binding.is_enabled() && pba_vectors(at, data.len()).any(is_unbound) {
            hardware(layout.pba.start().saturating_add(at), data);
        }
        overlay_pba(at, data, |vector, hardware| match binding.is_bound(vector) {
            true => binding.is_pending(vector),
            false => hardware && vector < layout.vectors,
        });
    }
}
