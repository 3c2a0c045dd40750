//! The effects of a call: all that the VMM has to do because of it.

use crate::address::ByteRange;

/// All that a VMM has to do because of a call. The value is made under the function's lock.
///
/// Two vCPUs can change one function at once, and carry out their effects in either order. The
/// larger [`sequence`](Self::sequence) is newer. [`coalesced_writes`](Self::coalesced_writes) and
/// [`bars`](Self::bars) are the whole state, not a difference: a VMM keeps the largest `sequence`
/// that it applied, and ignores older values. [`slots_freed`](Self::slots_freed) is an event: a VMM
/// handles it in any order.
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
///         // Here the hypervisor stops coalescing in the old range, and starts in the new one.
///         *now = Coalesced { sequence: effects.sequence, range: effects.coalesced_writes };
///     }
/// }
/// # let now = Mutex::default();
/// # let effects = |sequence, coalesced_writes| {
/// #     let (slots_freed, bars) = (false, [None; 7]);
/// #     ConfigEffects { sequence, coalesced_writes, slots_freed, bars }
/// # };
/// # apply(&now, &effects(2, None));
/// # apply(&now, &effects(1, ByteRange::new(0xe000_2000, 0x410)));
/// # assert_eq!(now.into_inner()?.range, None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the VMM has to carry out the effects"]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigEffects {
    /// The number of this value. It starts at 1, and grows with each call on the same function.
    pub sequence: u64,
    /// Memory slots were removed. The VMM calls [`PassthroughFunction::retry_placement`] on its
    /// other functions: a BAR whose memory slot was refused because of an overlap may fit now.
    ///
    /// [`PassthroughFunction::retry_placement`]: super::PassthroughFunction::retry_placement
    pub slots_freed: bool,
    /// The guest physical addresses where the hypervisor may coalesce writes
    /// (`KVM_REGISTER_COALESCED_MMIO`), or `None`. The VMM must forward the coalesced writes in
    /// order, and before any other access to the function.
    ///
    /// It is the MSI-X table while MSI-X is disabled or the function is masked: no entry has an
    /// effect then. When a driver enables MSI-X, Linux masks the function and writes each entry, of
    /// up to 2048. Coalescing saves an exit for each of these writes.
    pub coalesced_writes: Option<ByteRange>,
    /// The address of each BAR, by its number (6 is the ROM); `None` if the BAR decodes nothing. A
    /// bus that dispatches by range needs it. A bus that calls [`PassthroughFunction::decode`] for
    /// each access can ignore it.
    ///
    /// [`PassthroughFunction::decode`]: super::PassthroughFunction::decode
    pub bars: [Option<u64>; 7],
}
