//! Tests plans by example and against a naive model.

use super::*;
use crate::pci::msix::MsixState;
use proptest::prelude::*;

const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;

fn message(number: u32) -> MsiMessage {
    MsiMessage { address: 0xfee0_0000, data: number }
}

fn program(guest: &mut MsixState, vector: u16, data: u32, masked: bool) {
    let entry = u64::from(vector) * 16;
    guest.write(entry, &0xfee0_0000_u64.to_le_bytes());
    guest.write(entry + 8, &(u64::from(data) | u64::from(masked) << 32).to_le_bytes());
}

/// Carries out a plan on the state, and returns its steps.
fn reconcile(guest: &MsixState, host: &mut BoundState, growth: Growth) -> Vec<Step> {
    let steps = plan(&guest.programmed(), host, growth);
    steps.iter().for_each(|step| host.after(step, &guest.programmed()));
    steps
}

#[test]
fn binds_vectors_of_a_driver_that_unmasks_the_function_last() {
    let (mut guest, mut host) = (MsixState::new(65), BoundState::default());
    guest.write_control(ENABLE | FUNCTION_MASK);
    assert_eq!(reconcile(&guest, &mut host, Growth::Dynamic), [Step::EnableEmpty]);
    program(&mut guest, 0, 7, false);
    program(&mut guest, 1, 8, false);
    assert_eq!(reconcile(&guest, &mut host, Growth::Dynamic), [], "the function is masked");
    guest.write_control(ENABLE);
    let both = vec![(0, Some(message(7))), (1, Some(message(8)))];
    assert_eq!(
        reconcile(&guest, &mut host, Growth::Dynamic),
        [Step::Route(both), Step::Bind(vec![0, 1])]
    );
    assert_eq!(reconcile(&guest, &mut host, Growth::Dynamic), []);
}

#[test]
fn plan_of_one_vector_is_the_plan_of_all_if_the_others_agree() {
    // The state of each of four vectors: masked, or unmasked with one of two messages.
    let states = |number: u32| (0..4).map(move |vector| number / 3_u32.pow(vector) % 3);
    for growth in [Growth::Dynamic, Growth::Fixed] {
        for (before, vector, after) in
            (0..81).flat_map(|b| (0..4_u16).flat_map(move |v| (0..3).map(move |a| (b, v, a))))
        {
            let (mut guest, mut host) = (MsixState::new(4), BoundState::default());
            guest.write_control(ENABLE);
            for (number, state) in (0..).zip(states(before)) {
                program(&mut guest, number, state, state == 0);
            }
            reconcile(&guest, &mut host, growth);
            program(&mut guest, vector, after, after == 0);
            let one = plan_one(&guest.programmed_of([vector]), vector, &host, growth);
            assert_eq!(one, plan(&guest.programmed(), &host, growth), "{before} {vector} {after}");
        }
    }
}

#[test]
fn masking_and_unmasking_changes_the_route_only() {
    let (mut guest, mut host) = (MsixState::new(4), BoundState::default());
    guest.write_control(ENABLE);
    program(&mut guest, 2, 7, false);
    reconcile(&guest, &mut host, Growth::Dynamic);
    guest.write(2 * 16 + 12, &1_u32.to_le_bytes());
    assert_eq!(reconcile(&guest, &mut host, Growth::Dynamic), [Step::Route(vec![(2, None)])]);
    guest.write(2 * 16 + 12, &0_u32.to_le_bytes());
    assert_eq!(
        reconcile(&guest, &mut host, Growth::Dynamic),
        [Step::Route(vec![(2, Some(message(7)))])]
    );
}

#[test]
fn binds_all_vectors_at_enable_if_they_cannot_be_added() {
    let (mut guest, mut host) = (MsixState::new(65), BoundState::default());
    guest.write_control(ENABLE);
    assert_eq!(reconcile(&guest, &mut host, Growth::Fixed), [Step::Bind((0..65).collect())]);
    program(&mut guest, 64, 7, false);
    assert_eq!(
        reconcile(&guest, &mut host, Growth::Fixed),
        [Step::Route(vec![(64, Some(message(7)))])]
    );
}

#[test]
fn stops_routes_before_it_disables_msix() {
    let (mut guest, mut host) = (MsixState::new(2), BoundState::default());
    guest.write_control(ENABLE);
    program(&mut guest, 1, 7, false);
    reconcile(&guest, &mut host, Growth::Dynamic);
    guest.write_control(0);
    assert_eq!(
        reconcile(&guest, &mut host, Growth::Dynamic),
        [Step::Route(vec![(1, None)]), Step::Disable]
    );
    assert_eq!(host, BoundState::default());
}

#[test]
fn binds_vectors_with_gaps_in_one_call_that_spans_no_bound_vector() {
    let (mut guest, mut host) = (MsixState::new(16), BoundState::default());
    guest.write_control(ENABLE);
    program(&mut guest, 5, 0, false);
    reconcile(&guest, &mut host, Growth::Dynamic);
    guest.write_control(ENABLE | FUNCTION_MASK);
    [1, 3, 4, 7, 15].into_iter().for_each(|vector| program(&mut guest, vector, 0, false));
    reconcile(&guest, &mut host, Growth::Dynamic);
    guest.write_control(ENABLE);
    let steps = reconcile(&guest, &mut host, Growth::Dynamic);
    assert_eq!(steps[1..], [Step::Bind(vec![1, 3, 4]), Step::Bind(vec![7, 15])]);
}

#[test]
fn enabling_allocates_no_host_vectors_for_gaps() {
    let cases: [(&[u16], &[Step]); 3] = [
        (&[0, 1], &[Step::Bind(vec![0, 1])]),
        (&[1], &[Step::EnableEmpty, Step::Bind(vec![1])]),
        (&[0, 9], &[Step::EnableEmpty, Step::Bind(vec![0, 9])]),
    ];
    for (vectors, expected) in cases {
        let mut guest = MsixState::new(16);
        vectors.iter().for_each(|vector| program(&mut guest, *vector, 0, false));
        guest.write_control(ENABLE);
        let steps = reconcile(&guest, &mut BoundState::default(), Growth::Dynamic);
        assert_eq!(&steps[1..], expected, "{vectors:?}");
    }
}

#[test]
fn binds_again_if_the_guest_changes_the_number_of_vectors() {
    let wanted = |vectors| ProgrammedVectors { enabled: true, vectors, unmasked: BTreeMap::new() };
    let mut host = BoundState::default();
    host.after(&Step::Bind(vec![0, 1]), &wanted(2));
    assert_eq!(
        plan(&wanted(4), &host, Growth::Fixed),
        [Step::Disable, Step::Bind((0..4).collect())]
    );
    assert_eq!(plan(&wanted(2), &host, Growth::Fixed), []);
}

#[test]
fn repeats_routes_that_a_failure_left_uncertain() {
    let (mut guest, mut host) = (MsixState::new(2), BoundState::default());
    guest.write_control(ENABLE);
    program(&mut guest, 0, 7, false);
    reconcile(&guest, &mut host, Growth::Dynamic);
    let start = Step::Route(vec![(0, Some(message(8)))]);
    host.after_failure(&start);
    assert_eq!(
        plan(&guest.programmed(), &host, Growth::Dynamic),
        [Step::Route(vec![(0, Some(message(7)))])],
        "though it was routed so before"
    );
    guest.write(12, &1_u32.to_le_bytes());
    reconcile(&guest, &mut host, Growth::Dynamic);
    host.after_failure(&start);
    assert_eq!(
        plan(&guest.programmed(), &host, Growth::Dynamic),
        [Step::Route(vec![(0, None)])],
        "though it was not routed before"
    );
}

#[test]
fn a_step_that_the_host_has_too_little_for_becomes_smaller() {
    let bind = |vectors: &[u16]| Step::Bind(vectors.to_vec());
    let route = |vectors: &[u16]| {
        Step::Route(vectors.iter().map(|vector| (*vector, Some(message(1)))).collect())
    };
    use Growth::{Dynamic, Fixed};
    use Had::{Known, Unknown};
    let (off, on) = (false, true);
    // Enabled, the step, the number that the host has, and the steps that replace it.
    let cases: [(bool, Step, Had, Growth, &[Step]); 22] = [
        (off, bind(&[0, 1, 2, 3]), Known(3), Fixed, &[bind(&[0, 1, 2])]),
        (off, bind(&[0, 1, 2, 3]), Known(1), Dynamic, &[bind(&[0])]),
        (off, bind(&[0, 1, 2, 3]), Known(0), Fixed, &[]),
        // A host that has enough, and refused all the same.
        (off, bind(&[0, 1, 2, 3]), Known(4), Dynamic, &[]),
        (off, bind(&[0, 1, 2, 3]), Known(9), Fixed, &[]),
        (off, bind(&[0]), Known(1), Fixed, &[]),
        (off, bind(&[0, 1, 2, 3]), Unknown, Fixed, &[bind(&[0, 1])]),
        (off, bind(&[0, 1, 2]), Unknown, Fixed, &[bind(&[0])]),
        (off, bind(&[0]), Unknown, Fixed, &[]),
        (off, bind(&[]), Unknown, Fixed, &[]),
        (off, bind(&[0, 1, 2]), Unknown, Dynamic, &[bind(&[0]), bind(&[1, 2])]),
        (off, bind(&[0]), Unknown, Dynamic, &[]),
        (off, Step::EnableEmpty, Unknown, Dynamic, &[]),
        (on, bind(&[3, 5, 6]), Unknown, Dynamic, &[bind(&[3]), bind(&[5, 6])]),
        (on, bind(&[3, 5, 6]), Known(1), Dynamic, &[bind(&[3]), bind(&[5, 6])]),
        (on, bind(&[5, 6]), Unknown, Dynamic, &[bind(&[5]), bind(&[6])]),
        (on, bind(&[5]), Unknown, Dynamic, &[]),
        (on, bind(&[]), Unknown, Dynamic, &[]),
        (on, route(&[3, 5, 6]), Unknown, Fixed, &[route(&[3]), route(&[5, 6])]),
        (off, route(&[5, 6]), Unknown, Dynamic, &[route(&[5]), route(&[6])]),
        (on, route(&[5]), Unknown, Dynamic, &[]),
        (on, Step::Disable, Unknown, Fixed, &[]),
    ];
    for (enabled, step, had, growth, expected) in cases {
        let host = BoundState { enabled, ..BoundState::default() };
        assert_eq!(fewer(&step, had, &host, growth), expected, "{step:?}, {had:?}, {growth:?}");
    }
}

#[test]
fn asks_for_all_vectors_again_if_fewer_are_bound() {
    let wanted = |vectors| ProgrammedVectors { enabled: true, vectors, unmasked: BTreeMap::new() };
    // The number of bound vectors, and the steps after the guest enabled 4 again.
    let cases: [(u16, &[Step]); 2] =
        [(2, &[Step::Disable, Step::Bind(vec![0, 1, 2, 3])]), (4, &[])];
    for (bound, expected) in cases {
        let mut host = BoundState::default();
        host.after(&Step::Bind((0..bound).collect()), &wanted(4));
        host.ask_again();
        assert_eq!(plan(&wanted(4), &host, Growth::Fixed), expected);
        assert_eq!(plan(&wanted(4), &host, Growth::Dynamic), [], "vectors are added when unmasked");
    }
}

#[test]
fn stays_enabled_with_fewer_vectors_until_the_guest_asks_for_another_number() {
    let wanted = |vectors| ProgrammedVectors { enabled: true, vectors, unmasked: BTreeMap::new() };
    let mut host = BoundState::default();
    host.after(&Step::Bind(vec![0, 1]), &wanted(8));
    assert_eq!(plan(&wanted(8), &host, Growth::Fixed), []);
    assert_eq!(
        plan(&wanted(4), &host, Growth::Fixed),
        [Step::Disable, Step::Bind((0..4).collect())]
    );
    let off = ProgrammedVectors::default();
    plan(&off, &host, Growth::Fixed).iter().for_each(|step| host.after(step, &off));
    assert_eq!(plan(&wanted(8), &host, Growth::Fixed), [Step::Bind((0..8).collect())]);
}

/// A host with `most` vectors, which answers as Linux does. `None`: the step succeeded. Otherwise
/// the number that the host has, if it `counts` its vectors.
fn answer(
    step: &Step,
    host: &BoundState,
    allocated: &mut BTreeSet<u16>,
    (most, counts): (usize, bool),
) -> Option<Had> {
    let asked: BTreeSet<u16> = match step {
        Step::Bind(vectors) if host.enabled => vectors.iter().copied().collect(),
        Step::Bind(vectors) => (0..=*vectors.last().unwrap_or(&0)).collect(),
        Step::EnableEmpty => [0].into(),
        Step::Disable => {
            allocated.clear();
            return None;
        }
        Step::Route(_) => return None,
    };
    let all: BTreeSet<u16> = allocated.union(&asked).copied().collect();
    if all.len() > most {
        let is_known = counts && most > 0 && !host.enabled;
        return Some(if is_known { Had::Known(most) } else { Had::Unknown });
    }
    *allocated = all;
    None
}

/// Carries out a plan as the binding does, on a host with few vectors. Returns the number of calls.
fn reconcile_limited(
    wanted: &ProgrammedVectors,
    host: &mut BoundState,
    allocated: &mut BTreeSet<u16>,
    (growth, few): (Growth, (usize, bool)),
) -> usize {
    let mut steps: std::collections::VecDeque<Step> = plan(wanted, host, growth).into();
    let mut calls = 0;
    while let Some(step) = steps.pop_front() {
        calls += 1;
        let Some(had) = answer(&step, host, allocated, few) else {
            host.after(&step, wanted);
            continue;
        };
        let smaller = fewer(&step, had, host, growth);
        if smaller.is_empty() && !host.enabled {
            break;
        }
        smaller.into_iter().rev().for_each(|step| steps.push_front(step));
    }
    calls
}

#[derive(Clone, Debug)]
enum Access {
    Control(u16),
    Program(u16, u32, bool),
    /// Several entries are written while the function is masked.
    Batch(BTreeSet<u16>, bool),
    Reset,
}

impl Access {
    /// The accesses that a batch consists of.
    fn singles(self) -> Vec<Access> {
        let Access::Batch(vectors, masked) = self else {
            return vec![self];
        };
        let programs = vectors.into_iter().map(|vector| Access::Program(vector, 1, masked));
        [Access::Control(ENABLE | FUNCTION_MASK)]
            .into_iter()
            .chain(programs)
            .chain([Access::Control(ENABLE)])
            .collect()
    }
}

fn access() -> impl Strategy<Value = Access> {
    prop_oneof![
        (0..4_u16).prop_map(|bits| Access::Control(bits << 14)),
        (0..6_u16, 0..3_u32, any::<bool>())
            .prop_map(|(vector, data, masked)| Access::Program(vector, data, masked)),
        (prop::collection::btree_set(0..6_u16, 1..5), any::<bool>())
            .prop_map(|(vectors, masked)| Access::Batch(vectors, masked)),
        Just(Access::Reset),
    ]
}

/// Checks the content, the order and the number of the steps.
fn check_steps(
    steps: &[Step],
    wanted: &ProgrammedVectors,
    mut host: BoundState,
    growth: Growth,
) -> Result<(), TestCaseError> {
    let starts = |step: &Step| match step {
        Step::Route(changes) => changes.iter().any(|(_, message)| message.is_some()),
        _ => false,
    };
    prop_assert!(
        steps.iter().filter(|step| starts(step)).count() <= 1,
        "more than one batch: {:?}",
        steps
    );
    for step in steps {
        match step {
            Step::Bind(vectors) => {
                let span = vectors[0]..=vectors[vectors.len() - 1];
                prop_assert!(
                    host.bound.range(span).next().is_none(),
                    "a bound vector is lost: {:?}",
                    steps
                );
                let routed = wanted.unmasked.keys().all(|vector| host.routed.contains_key(vector));
                prop_assert!(routed, "bound before it is routed: {:?}", steps);
                if growth == Growth::Fixed {
                    prop_assert!(!host.enabled, "bound after enable: {:?}", steps);
                    prop_assert_eq!(vectors, &(0..wanted.vectors).collect::<Vec<_>>());
                }
            }
            Step::EnableEmpty => prop_assert!(growth == Growth::Dynamic && !host.enabled),
            Step::Disable => {
                prop_assert!(
                    host.enabled && !wanted.enabled,
                    "disabled to add vectors: {:?}",
                    steps
                );
                prop_assert!(host.routed.is_empty(), "its irqfds are still attached: {:?}", steps);
            }
            Step::Route(_) => {}
        }
        host.after(step, wanted);
    }
    Ok(())
}

proptest! {
    #[test]
    fn the_host_agrees_with_the_guest_after_any_accesses(
        accesses in prop::collection::vec(access(), 0..40), fixed: bool,
    ) {
        let growth = if fixed { Growth::Fixed } else { Growth::Dynamic };
        let (mut guest, mut host) = (MsixState::new(6), BoundState::default());
        // The naive model: the registers, interpreted by the specification.
        let (mut control, mut table) = (0_u16, [(0_u32, true); 6]);
        for access in accesses.into_iter().flat_map(Access::singles) {
            match access {
                Access::Control(bits) => { control = bits; guest.write_control(bits); }
                Access::Program(vector, data, masked) => {
                    table[usize::from(vector)] = (data, masked);
                    program(&mut guest, vector, data, masked);
                }
                Access::Batch(..) => {}
                Access::Reset => { (control, table) = (0, [(0, true); 6]); guest.reset(); }
            }
            let before = host.clone();
            let steps = reconcile(&guest, &mut host, growth);
            check_steps(&steps, &guest.programmed(), before, growth)?;
            let open = control & ENABLE != 0 && control & FUNCTION_MASK == 0;
            let expected: BTreeMap<u16, MsiMessage> = (0..6).zip(table)
                .filter(|(_, (_, masked))| open && !masked)
                .map(|(vector, (data, _))| (vector, message(data))).collect();
            prop_assert_eq!(&host.routed, &expected);
            prop_assert_eq!(host.enabled, control & ENABLE != 0);
            prop_assert!(expected.keys().all(|vector| host.bound.contains(vector)));
            prop_assert!(host.enabled || host.bound.is_empty());
            prop_assert_eq!(plan(&guest.programmed(), &host, growth), []);
        }
    }

    #[test]
    fn a_host_with_few_vectors_binds_as_many_as_it_has(
        unmasked in prop::collection::btree_set(0..64_u16, 0..64), most in 0..80_usize, fixed: bool,
        counts: bool,
    ) {
        let growth = if fixed { Growth::Fixed } else { Growth::Dynamic };
        let unmasked: BTreeMap<u16, MsiMessage> =
            unmasked.into_iter().map(|vector| (vector, message(vector.into()))).collect();
        let wanted = ProgrammedVectors { enabled: true, vectors: 64, unmasked };
        let (mut host, mut allocated) = (BoundState::default(), BTreeSet::new());
        let few = (growth, (most, counts));
        let calls = reconcile_limited(&wanted, &mut host, &mut allocated, few);
        prop_assert!(calls <= 2 * 64 + 3, "{calls} calls");
        prop_assert!(allocated.len() <= most);
        let asked = if fixed { 64 } else { wanted.unmasked.len() };
        // A kernel that can add vectors allocates vector 0 with the index.
        let at_zero = usize::from(!fixed && !wanted.unmasked.contains_key(&0));
        // Where vectors cannot be added and their number is unknown, a power of two works: 64 are
        // asked for.
        let power = most.checked_ilog2().map_or(0, |power| 1 << power);
        let works = if fixed && !counts { power } else { most };
        prop_assert!(host.bound.len() >= works.saturating_sub(at_zero).min(asked));
        prop_assert_eq!(host.enabled, most > 0);
        if fixed {
            prop_assert!(host.bound.iter().copied().eq(0..works.min(64) as u16));
            let again = reconcile_limited(&wanted, &mut host, &mut allocated, few);
            prop_assert_eq!(again, if most == 0 { 7 } else { 0 }, "64 vectors to 1");
            // The guest enables the index again, and the host has more.
            host.ask_again();
            reconcile_limited(&wanted, &mut host, &mut allocated, (growth, (80, counts)));
            prop_assert!(host.is_complete(&wanted));
            prop_assert_eq!(host.bound.len(), 64);
        }
        // The guest disables the index, and the host has more.
        let off = ProgrammedVectors::default();
        reconcile_limited(&off, &mut host, &mut allocated, (growth, (80, counts)));
        prop_assert_eq!(&host, &BoundState::default());
        reconcile_limited(&wanted, &mut host, &mut allocated, (growth, (80, counts)));
        prop_assert!(host.is_complete(&wanted));
    }
}
