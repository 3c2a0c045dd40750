//! From what the guest programmed and what is bound to the steps that make them agree. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::host::MsiMessage;

/// What the guest asks for of one kind of message-signalled interrupt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The kind is on.
    pub enabled: bool,
    /// How many vectors it has while it is on.
    pub vectors: u16,
    /// The vectors that may fire now, with their messages; none while it is off.
    pub deliver: BTreeMap<u16, MsiMessage>,
}

/// What is bound in the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostState {
    /// VFIO has it on.
    pub enabled: bool,
    /// The vectors whose eventfd VFIO has. They stay bound while it is on: a masked vector's eventfd collects
    /// what fires.
    pub bound: BTreeSet<u16>,
    /// The vectors that are delivered to the guest, with their messages.
    pub delivered: BTreeMap<u16, MsiMessage>,
}

/// How VFIO lets vectors be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Growth {
    /// Whenever one is wanted (MSI-X since Linux 6.5).
    Dynamic,
    /// Not once it is on (`VFIO_IRQ_INFO_NORESIZE`; MSI always): turning it off to grow would lose
    /// interrupts, so all are bound at enable.
    Fixed,
}

/// One step of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Deliver vectors to the guest, or stop doing so: one batch.
    Deliver(Vec<(u16, Option<MsiMessage>)>),
    /// Turn it on without any vector: the function then keeps pending what it wants to signal.
    EnableEmpty,
    /// Give VFIO the eventfds of these vectors in one call; turns it on where it is off.
    Bind(Range<u16>),
    /// Turn it off.
    Disable,
}

/// The steps from `host` to what the guest wants; none where they agree.
///
/// Delivery is set up before a vector is bound and taken down before the kind goes off, so that no interrupt
/// comes between.
pub fn plan(wanted: &Wanted, host: &HostState, growth: Growth) -> Vec<Step> {
    let mut steps = Vec::new();
    let changes = changes(&wanted.deliver, &host.delivered);
    if !changes.is_empty() {
        steps.push(Step::Deliver(changes));
    }
    if !wanted.enabled {
        if host.enabled {
            steps.push(Step::Disable);
        }
        return steps;
    }
    let unbound = match growth {
        Growth::Fixed if !host.enabled => (0..wanted.vectors).collect(),
        Growth::Fixed => Vec::new(),
        Growth::Dynamic => {
            let missing = wanted
                .deliver
                .keys()
                .filter(|vector| !host.bound.contains(vector));
            missing.copied().collect()
        }
    };
    if unbound.is_empty() && !host.enabled {
        steps.push(Step::EnableEmpty);
    }
    steps.extend(runs(&unbound).into_iter().map(Step::Bind));
    steps
}

/// What to tell the router: vectors to stop, and vectors that are new or have another message.
fn changes(
    wanted: &BTreeMap<u16, MsiMessage>,
    delivered: &BTreeMap<u16, MsiMessage>,
) -> Vec<(u16, Option<MsiMessage>)> {
    let stop = delivered
        .keys()
        .filter(|vector| !wanted.contains_key(vector))
        .map(|vector| (*vector, None));
    let start = wanted
        .iter()
        .filter(|(vector, message)| delivered.get(vector) != Some(message));
    stop.chain(start.map(|(vector, message)| (*vector, Some(*message))))
        .collect()
}

/// Runs of numbers that follow one another, from an ascending list.
fn runs(vectors: &[u16]) -> Vec<Range<u16>> {
    let mut runs: Vec<Range<u16>> = Vec::new();
    for vector in vectors {
        let end = vector.saturating_add(1);
        match runs.last_mut() {
            Some(run) if run.end == *vector => run.end = end,
            _ => runs.push(*vector..end),
        }
    }
    runs
}

impl HostState {
    /// What the host is after a step succeeded.
    pub fn after(&mut self, step: &Step) {
        match step {
            Step::Deliver(changes) => {
                for (vector, message) in changes {
                    match message {
                        Some(message) => self.delivered.insert(*vector, *message),
                        None => self.delivered.remove(vector),
                    };
                }
            }
            Step::EnableEmpty => self.enabled = true,
            Step::Bind(vectors) => {
                self.enabled = true;
                self.bound.extend(vectors.clone());
            }
            Step::Disable => {
                self.enabled = false;
                self.bound.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::msix::MsixState;
    use proptest::prelude::*;

    const ENABLE: u16 = 1 << 15;
    const FUNCTION_MASK: u16 = 1 << 14;

    fn message(number: u32) -> MsiMessage {
        MsiMessage {
            address: 0xfee0_0000,
            data: number,
        }
    }

    fn program(guest: &mut MsixState, vector: u16, data: u32, masked: bool) {
        let entry = u64::from(vector) * 16;
        guest.write(entry, &0xfee0_0000_u64.to_le_bytes());
        guest.write(
            entry + 8,
            &(u64::from(data) | u64::from(masked) << 32).to_le_bytes(),
        );
    }

    /// Carries out a plan on the state, and says how it went.
    fn reconcile(guest: &MsixState, host: &mut HostState, growth: Growth) -> Vec<Step> {
        let steps = plan(&guest.wanted(), host, growth);
        steps.iter().for_each(|step| host.after(step));
        steps
    }

    #[test]
    fn a_driver_that_enables_masked_and_then_unmasks_its_vectors() {
        let (mut guest, mut host) = (MsixState::new(65), HostState::default());
        guest.write_control(ENABLE | FUNCTION_MASK);
        assert_eq!(reconcile(&guest, &mut host, Growth::Dynamic), [Step::EnableEmpty]);
        program(&mut guest, 0, 7, false);
        program(&mut guest, 1, 8, false);
        assert_eq!(
            reconcile(&guest, &mut host, Growth::Dynamic),
            [],
            "the function is masked"
        );
        guest.write_control(ENABLE);
        let both = vec![(0, Some(message(7))), (1, Some(message(8)))];
        assert_eq!(
            reconcile(&guest, &mut host, Growth::Dynamic),
            [Step::Deliver(both), Step::Bind(0..2)]
        );
        assert_eq!(reconcile(&guest, &mut host, Growth::Dynamic), []);
    }

    #[test]
    fn a_mask_cycle_touches_delivery_only() {
        let (mut guest, mut host) = (MsixState::new(4), HostState::default());
        guest.write_control(ENABLE);
        program(&mut guest, 2, 7, false);
        reconcile(&guest, &mut host, Growth::Dynamic);
        guest.write(2 * 16 + 12, &1_u32.to_le_bytes());
        assert_eq!(
            reconcile(&guest, &mut host, Growth::Dynamic),
            [Step::Deliver(vec![(2, None)])]
        );
        guest.write(2 * 16 + 12, &0_u32.to_le_bytes());
        assert_eq!(
            reconcile(&guest, &mut host, Growth::Dynamic),
            [Step::Deliver(vec![(2, Some(message(7)))])]
        );
    }

    #[test]
    fn without_resizing_every_vector_is_bound_at_enable_and_none_later() {
        let (mut guest, mut host) = (MsixState::new(65), HostState::default());
        guest.write_control(ENABLE);
        assert_eq!(reconcile(&guest, &mut host, Growth::Fixed), [Step::Bind(0..65)]);
        program(&mut guest, 64, 7, false);
        assert_eq!(
            reconcile(&guest, &mut host, Growth::Fixed),
            [Step::Deliver(vec![(64, Some(message(7)))])]
        );
    }

    #[test]
    fn delivery_ends_before_msix_goes_off() {
        let (mut guest, mut host) = (MsixState::new(2), HostState::default());
        guest.write_control(ENABLE);
        program(&mut guest, 1, 7, false);
        reconcile(&guest, &mut host, Growth::Dynamic);
        guest.write_control(0);
        assert_eq!(
            reconcile(&guest, &mut host, Growth::Dynamic),
            [Step::Deliver(vec![(1, None)]), Step::Disable]
        );
        assert_eq!(host, HostState::default());
    }

    #[derive(Clone, Debug)]
    enum Access {
        Control(u16),
        Program(u16, u32, bool),
        Reset,
    }

    fn access() -> impl Strategy<Value = Access> {
        prop_oneof![
            (0..4_u16).prop_map(|bits| Access::Control(bits << 14)),
            (0..6_u16, 0..3_u32, any::<bool>())
                .prop_map(|(vector, data, masked)| Access::Program(vector, data, masked)),
            Just(Access::Reset),
        ]
    }

    proptest! {
        #[test]
        fn whatever_the_guest_does_the_host_ends_where_it_should(
            accesses in prop::collection::vec(access(), 0..40), fixed: bool,
        ) {
            let growth = if fixed { Growth::Fixed } else { Growth::Dynamic };
            let (mut guest, mut host) = (MsixState::new(6), HostState::default());
            // The naive model: the registers, and what the spec says of them.
            let (mut control, mut table) = (0_u16, [(0_u32, true); 6]);
            for access in accesses {
                match access {
                    Access::Control(bits) => { control = bits; guest.write_control(bits); }
                    Access::Program(vector, data, masked) => {
                        table[usize::from(vector)] = (data, masked);
                        program(&mut guest, vector, data, masked);
                    }
                    Access::Reset => { (control, table) = (0, [(0, true); 6]); guest.reset(); }
                }
                reconcile(&guest, &mut host, growth);
                let open = control & ENABLE != 0 && control & FUNCTION_MASK == 0;
                let expected: BTreeMap<u16, MsiMessage> = (0..6).zip(table)
                    .filter(|(_, (_, masked))| open && !masked)
                    .map(|(vector, (data, _))| (vector, message(data))).collect();
                prop_assert_eq!(&host.delivered, &expected);
                prop_assert_eq!(host.enabled, control & ENABLE != 0);
                prop_assert!(expected.keys().all(|vector| host.bound.contains(vector)));
                prop_assert!(host.enabled || host.bound.is_empty());
                prop_assert_eq!(plan(&guest.wanted(), &host, growth), []);
            }
        }
    }
}
