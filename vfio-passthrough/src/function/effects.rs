//! What an access of the guest leaves for the VMM to do.

use super::{PassthroughFunction, State};
use crate::address::ByteRange;

/// What a change of a function leaves for the VMM to do, made under the function's lock.
///
/// Two vCPUs can change one function at once, and then carry their effects out in either order. `sequence` says which of
/// the two is newer: [`coalesced_writes`](Self::coalesced_writes) and [`bars`](Self::bars) are the whole state and not a
/// difference, so a VMM keeps the largest `sequence` that it has applied, and skips a value that is older. `slots_freed` is an event: the
/// VMM acts on it whatever its order.
///
/// ```
/// use std::sync::Mutex;
/// use vfio_passthrough::{ByteRange, ConfigEffects};
///
/// #[derive(Default)]
/// struct Coalesced {
///     sequence: u64,
///     range: Option<ByteRange>,
/// }
///
/// fn apply(now: &Mutex<Coalesced>, effects: &ConfigEffects) {
///     let mut now = now.lock().unwrap();
///     if effects.sequence > now.sequence {
///         // Here the hypervisor stops to coalesce at the former range, and starts at the new one.
///         *now = Coalesced { sequence: effects.sequence, range: effects.coalesced_writes };
///     }
/// }
/// # let now = Mutex::default();
/// # let effects = |sequence, coalesced_writes| ConfigEffects { sequence, coalesced_writes, slots_freed: false, bars: [None; 7] };
/// # apply(&now, &effects(2, None));
/// # apply(&now, &effects(1, ByteRange::new(0xe000_2000, 0x410)));
/// # assert_eq!(now.into_inner()?.range, None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the VMM has to carry the effects out"]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigEffects {
    /// The number of this value: later changes of the same function have larger numbers. The first is 1.
    pub sequence: u64,
    /// Memory slots were removed. The VMM calls [`PassthroughFunction::retry_placement`] on its other functions: a BAR
    /// of theirs whose memory slot was refused may have room now.
    pub slots_freed: bool,
    /// The guest physical addresses where the hypervisor may coalesce writes from now on, as long as it delivers them in
    /// order, and before any other access to the function; `None`: nowhere.
    ///
    /// It is the MSI-X table while MSI-X is disabled or the function is masked, so that no entry of it has an effect.
    /// Linux masks the function and then writes each of up to 2048 entries when a driver enables MSI-X: KVM's coalesced
    /// MMIO spares an exit for each (`KVM_REGISTER_COALESCED_MMIO`).
    pub coalesced_writes: Option<ByteRange>,
    /// Where the guest has each BAR now, by its number (6 is the ROM), or `None` where it decodes nothing. For a bus that
    /// dispatches by ranges; one that asks [`PassthroughFunction::decode`] at each access has nothing to do.
    pub bars: [Option<u64>; 7],
}

impl PassthroughFunction {
    /// The effects of what was just done; the lock is held since then.
    pub(super) fn effects(&self, state: &mut State) -> ConfigEffects {
        state.sequence = state.sequence.saturating_add(1);
        ConfigEffects {
            sequence: state.sequence,
            slots_freed: state.placement.take_freed(),
            coalesced_writes: self.coalesced_writes(state),
            bars: self.bar_addresses(state),
        }
    }

    fn coalesced_writes(&self, state: &State) -> Option<ByteRange> {
        let layout = self.msix.filter(|_| state.running)?;
        let mut bars = self.bars().iter();
        let bar = bars.find(|bar| bar.index == layout.table_bar)?;
        let base = state.config.decoded(bar).filter(|_| state.interrupts.is_table_idle())?;
        ByteRange::new(base.checked_add(layout.table.start())?, layout.table.size())
    }

    fn bar_addresses(&self, state: &State) -> [Option<u64>; 7] {
        let mut addresses = [None; 7];
        for bar in self.bars.all().iter().filter(|_| state.running) {
            if let Some(address) = addresses.get_mut(usize::from(bar.index.number())) {
                *address = state.config.decoded(bar);
            }
        }
        addresses
    }
}
