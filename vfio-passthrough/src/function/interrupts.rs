//! A function's interrupts: from its registers to the host, and what is pending.

use super::{Error, PassthroughFunction, State};
use crate::address::BarIndex;
use crate::irq::Demand;
use crate::pci::msix::{MsixPart, overlay_pba, pba_vectors};
use crate::pci::regs::Command;

impl PassthroughFunction {
    /// Makes the host agree with what the guest programmed.
    pub(super) fn reconcile_interrupts(&self, state: &mut State) -> Result<(), Error> {
        let demand = Demand {
            // A function that decodes nothing has no driver. DisINTx is the device's: the kernel honours it.
            intx: state.config.command().intersects(Command::MEMORY | Command::IO),
            msi: state.config.msi_wanted(),
            msix: state.msix.wanted(),
        };
        state.interrupts.reconcile(&demand).map_err(|source| self.interrupt_error(source))
    }

    /// What an access to a BAR touches of the structures of MSI-X.
    pub(super) fn msix_part(&self, bar: BarIndex, offset: u64) -> Option<MsixPart> {
        self.msix.and_then(|layout| layout.part_at(bar, offset))
    }

    /// The pending bits (PCI 6.8.2.10). What a bound vector fired while it was masked is in its eventfd. A vector
    /// that is not bound is masked in the hardware too, by the host's kernel, so its bit is in the hardware's
    /// array: at most one read of the device, and none where all are bound.
    pub(super) fn read_pba(&self, at: u64, data: &mut [u8]) {
        data.fill(0);
        let state = self.lock();
        let Some((layout, binding)) = self.msix.zip(state.interrupts.msix.as_ref()) else {
            return;
        };
        let unbound = |vector| vector < layout.vectors && !binding.is_bound(vector);
        if binding.is_enabled() && pba_vectors(at, data.len()).any(unbound) {
            let offset = layout.pba.start().saturating_add(at);
            self.region_read(layout.pba_bar, offset, data);
        }
        overlay_pba(at, data, |vector, hardware| match binding.is_bound(vector) {
            true => binding.is_pending(vector),
            false => hardware && vector < layout.vectors,
        });
    }
}

impl State {
    /// The vectors of MSI that fired and were not delivered, a bit each.
    pub(super) fn msi_pending(&self) -> u32 {
        let vectors = self.config.msi().map_or(0, |layout| layout.vectors());
        let binding = self.interrupts.msi.as_ref();
        (0..vectors)
            .filter(|vector| binding.is_some_and(|binding| binding.is_pending(*vector)))
            .fold(0, |bits, vector| bits | 1 << vector)
    }
}
