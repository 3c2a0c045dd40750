//! Interrupts. The state that the guest programmed and the state that is bound in the host are kept
//! apart, and reconciled.
//!
//! [`plan`] is pure: it computes the steps between the two states. `binding` carries them out for
//! MSI and MSI-X, and `intx` handles the pin. A function has at most one of the three enabled (PCI
//! 3.0, 6.8).

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
use crate::pci::msix::{MsixLayout, MsixState, entry_vector, overlay_pba, pba_vectors};
use crate::pci::regs::Command;

/// The interrupts of one function: the emulated MSI-X table, and the bindings of INTx, MSI and
/// MSI-X, as far as the function has them.
#[derive(Default)]
pub(crate) struct Interrupts {
    layout: Option<MsixLayout>,
    table: MsixState,
    intx: Option<Intx>,
    msi: Option<Binding>,
    msix: Option<Binding>,
}

impl Interrupts {
    /// Interrupts that are neither programmed nor bound. `layout` is that of the MSI-X capability.
    pub fn new(
        layout: Option<MsixLayout>,
        (intx, msi, msix): (Option<Intx>, Option<Binding>, Option<Binding>),
    ) -> Self {
        let table = MsixState::new(layout.map_or(0, |layout| layout.vectors));
        Self { layout, table, intx, msi, msix }
    }

    /// The emulated MSI-X table.
    pub fn table(&mut self) -> &mut MsixState {
        &mut self.table
    }

    /// Whether MSI-X is disabled or the function is masked, so that no entry of the table has an
    /// effect.
    pub fn is_table_idle(&self) -> bool {
        self.table.is_masked_or_disabled()
    }

    /// Whether the host has too little for the vectors that the guest programmed.
    pub fn are_short(&self) -> bool {
        self.msi.iter().chain(&self.msix).any(Binding::is_short)
    }

    /// The guest enables MSI or MSI-X again: the host is asked for all vectors again.
    pub fn ask_again(&mut self) {
        self.msi.iter_mut().chain(&mut self.msix).for_each(Binding::ask_again);
    }

    /// Binds and routes the interrupts that the guest programmed. If the guest enabled more than
    /// one, MSI-X wins over MSI, and MSI over the pin. Disabling comes before enabling.
    ///
    /// # Errors
    ///
    /// The first failure. Later steps are carried out too. The next call retries the failed steps.
    pub fn reconcile(&mut self, config: &ConfigSpace) -> Result<(), Error> {
        if let Some(control) = config.msix_control() {
            self.table.write_control(control);
        }
        let msix = self.table.programmed();
        let msi = if msix.enabled { ProgrammedVectors::default() } else { config.msi_programmed() };
        // A function that decodes nothing has no driver. Interrupt Disable of the command register
        // is forwarded to the device: the kernel honours it (vfio_basic_config_write).
        let decodes = config.command().intersects(Command::MEMORY | Command::IO);
        self.enable(decodes && !msix.enabled && !msi.enabled, &msi, &msix)
    }

    /// The same after a write of the MSI-X table at `offset`, if all vectors agreed before: it looks
    /// at one vector only. `None` if MSI-X is not enabled in the host, and nothing was done.
    pub fn reconcile_entry(&mut self, offset: u64) -> Option<Result<(), Error>> {
        let vector = entry_vector(offset)?;
        let binding = self.msix.as_mut().filter(|binding| binding.is_enabled())?;
        let one = self.table.programmed_of([vector]);
        Some(binding.reconcile_one(vector, &one, || self.table.programmed()))
    }

    /// Disables all interrupts in the host. The state that the guest programmed stays.
    ///
    /// # Errors
    ///
    /// The first failure. Later steps are carried out too.
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
        let mut bindings = [(&mut self.msi, msi), (&mut self.msix, msix)];
        bindings.sort_by_key(|(_, programmed)| programmed.enabled);
        for (binding, programmed) in bindings {
            let reconciled = binding.as_mut().map(|binding| binding.reconcile(programmed));
            result = result.and(reconciled.unwrap_or(Ok(())));
        }
        match self.intx.as_mut().filter(|_| intx) {
            Some(pin) => result.and(pin.enable()),
            None => result,
        }
    }

    /// The pending bits of MSI: a bit for each vector that fired while it was masked.
    pub fn msi_pending(&self, config: &ConfigSpace) -> u32 {
        let vectors = config.msi().map_or(0, |layout| layout.vectors());
        let is_pending =
            |vector: &u16| self.msi.as_ref().is_some_and(|binding| binding.is_pending(*vector));
        (0..vectors).filter(is_pending).fold(0, |bits, vector| bits | 1 << vector)
    }

    /// Reads the PBA of MSI-X (PCI 3.0, 6.8.2.10). The eventfd of a bound vector holds what fired
    /// while it was masked. A vector that is not bound is masked in the hardware, so its bit is in
    /// the hardware's PBA. `hardware` reads that at most once, and not if all vectors are bound or
    /// the PBA has no place in a BAR.
    pub fn read_pba(&self, at: u64, data: &mut [u8], hardware: impl FnOnce(u64, &mut [u8])) {
        data.fill(0);
        let Some((layout, binding)) = self.layout.zip(self.msix.as_ref()) else {
            return;
        };
        let is_unbound =
            |vector| !layout.pba_is_moved && vector < layout.vectors && !binding.is_bound(vector);
        if binding.is_enabled() && pba_vectors(at, data.len()).any(is_unbound) {
            hardware(layout.pba.start().saturating_add(at), data);
        }
        overlay_pba(at, data, |vector, hardware| match binding.is_bound(vector) {
            true => binding.is_pending(vector),
            false => hardware && vector < layout.vectors,
        });
    }
}
