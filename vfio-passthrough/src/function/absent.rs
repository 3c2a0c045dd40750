//! A device that stops to respond while the guest runs, and may come back.
//!
//! The guest sees what a driver on the host would: all-ones. No error is reported to the VMM: a
//! device that resets itself is silent for a while too, and where hardware reports the loss (AER,
//! surprise down) vfio-pci signals the error event.

use super::state::{PassthroughFunction, State};
use crate::pci::presence::Fault;

impl PassthroughFunction {
    /// Looks whether the device responds, if `data`, which was read from it, is all-ones. If it
    /// does not, its windows are removed and one line is logged.
    pub(super) fn has_gone(&self, state: &mut State, data: &[u8]) -> bool {
        if data.iter().any(|byte| *byte != 0xff) || !self.device.has_gone() {
            return false;
        }
        if !self.device.is_absent() {
            self.device.set_absent(true);
            self.device.warn(&self.device.unfit("while the guest runs", Fault::Absent));
            let removed = state.placement.remove_all();
            self.device.warn_of(removed);
        }
        true
    }

    /// Whether a device that did not respond still does not. If it came back, its windows are
    /// placed again.
    pub(super) fn stays_absent(&self, state: &mut State) -> bool {
        if !self.device.is_absent() {
            return false;
        }
        if !self.device.is_back() {
            return true;
        }
        log::info!("{}: the device responds again", self.address());
        self.device.set_absent(false);
        let read = self.read_power_state(state);
        self.device.warn_of(read);
        state.placement.place(&state.config);
        // The device may have missed writes: the next one repeats them.
        state.needs_resync = true;
        false
    }
}
