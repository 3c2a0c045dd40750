//! The parts of a function, and what changes while the guest runs.

use std::fmt;
use std::sync::{Arc, PoisonError};

use super::events::HostEvents;
use super::reset::Reset;
use crate::bars::Bars;
use crate::bars::placement::Placement;
use crate::counters::FunctionTraps;
use crate::device::FunctionDevice;
use crate::irq::Interrupts;
use crate::pci::config::ConfigSpace;
use crate::pci::msix::MsixLayout;
use crate::pci::presence::PowerState;
use crate::pci::regs::Command;
use crate::sync::{Mutex, MutexGuard};

/// A PCI function that is assigned to a guest.
///
/// A VMM's PCI bus forwards the guest's config accesses to it, and BAR accesses that no memory slot
/// covers. All methods may be called from any thread. Dropping it does the same as
/// [`shutdown`](Self::shutdown), and logs failures.
pub struct PassthroughFunction {
    pub(super) device: Arc<FunctionDevice>,
    /// The bits of the command register that the host has set and the guest cannot change.
    pub(super) host_command: Command,
    pub(super) bars: Bars,
    pub(super) msix: Option<MsixLayout>,
    pub(super) reset: Reset,
    pub(super) traps: Arc<FunctionTraps>,
    pub(super) events: HostEvents,
    pub(super) state: Mutex<State>,
}

/// The state that changes while the guest runs.
pub(super) struct State {
    pub(super) config: ConfigSpace,
    // Drop order: interrupts, then memory slots.
    pub(super) interrupts: Interrupts,
    pub(super) placement: Placement,
    /// The power state at the last look.
    pub(super) power: PowerState,
    /// The sequence number of the last effects.
    pub(super) sequence: u64,
    /// A step of an earlier write failed. The next write repeats all steps.
    pub(super) needs_resync: bool,
    /// Neither shut down nor detached.
    pub(super) running: bool,
}

impl fmt::Debug for PassthroughFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PassthroughFunction")
            .field("address", &self.address())
            .field("bars", &self.bars())
            .field("reset", &self.reset)
            .field("detached", &self.is_detached())
            .finish_non_exhaustive()
    }
}

impl PassthroughFunction {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves the state as it was between two steps, which is a state it can
        // be in.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
