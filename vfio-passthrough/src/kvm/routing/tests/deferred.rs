//! Tests of deferred routes. The APIC of a vCPU reports the interrupts that arrived.

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;
use proptest::prelude::*;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::*;

/// Offset of the spurious interrupt vector register (SDM 3A, 11.9); bit 8 turns the APIC on.
const SPURIOUS: usize = 0xf0;
/// Offset of the interrupt request register (SDM 3A, 11.8.4): 8 words, 16 bytes apart.
const REQUESTS: usize = 0x200;
/// The first interrupt that the tests use. An APIC has no interrupts below 16.
const FIRST: u32 = 0x20;

pub(super) struct Setup {
    pub vm: Arc<VmFd>,
    pub calls: Arc<KvmCalls>,
    pub router: KvmRouter,
    cpu: VcpuFd,
}

impl Setup {
    pub fn new(test: &str) -> Option<Self> {
        let vm = Arc::new(vm(test)?);
        let cpu = vm.create_vcpu(0).unwrap();
        let mut apic = cpu.get_lapic().unwrap();
        apic.regs[SPURIOUS..SPURIOUS + 2].copy_from_slice(&[-1, 1]);
        cpu.set_lapic(&apic).unwrap();
        let calls = Arc::new(KvmCalls::default());
        let router = KvmRouter::new(vm.clone(), 24..4096, calls.clone());
        Some(Self { vm, calls, router, cpu })
    }

    /// The vectors that arrived since the last call of `arrived`, in order.
    fn requested(&self) -> Vec<u16> {
        let apic = self.cpu.get_lapic().unwrap();
        let is_set =
            |interrupt: &usize| apic.regs[register(*interrupt)] >> (interrupt % 8) & 1 != 0;
        let requested = (0..256).filter(is_set);
        requested.map(|interrupt| interrupt as u16 - FIRST as u16).collect()
    }

    /// The vectors that arrived since the last call. No interrupt may be on its way.
    fn arrived(&self) -> Vec<u16> {
        let requested = self.requested();
        let mut apic = self.cpu.get_lapic().unwrap();
        (0..256).for_each(|interrupt| apic.regs[register(interrupt)] = 0);
        self.cpu.set_lapic(&apic).unwrap();
        requested
    }

    /// Waits until `count` vectors arrived, and returns them. If an eventfd is signalled when its
    /// irqfd is attached, KVM delivers from a work queue.
    pub fn arrived_at_last(&self, count: usize) -> Vec<u16> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.requested().len() < count && Instant::now() < deadline {}
        self.arrived()
    }

    pub fn commits(&self) -> u64 {
        self.calls.set_gsi_routing.value()
    }
}

/// The index of the request register's byte that has an interrupt's bit.
fn register(interrupt: usize) -> usize {
    REQUESTS + interrupt / 32 * 16 + interrupt % 32 / 8
}

pub(super) fn to_cpu(vector: u16) -> Option<MsiMessage> {
    message(FIRST + u32::from(vector))
}

fn is_readable(fd: &impl AsRawFd) -> bool {
    let epoll = Epoll::new().unwrap();
    epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), EpollEvent::new(EventSet::IN, 0)).unwrap();
    epoll.wait(0, &mut [EpollEvent::default()]).unwrap() == 1
}

#[test]
fn sixteen_vectors_unmasked_one_by_one_share_a_commit() {
    let name = "sixteen_vectors_unmasked_one_by_one_share_a_commit";
    // Vectors, commits and irqfds. The other vectors are still deferred.
    for (count, commits, irqfds) in [(1, 0, 0), (3, 0, 0), (64, 4, 64), (2048, 128, 2048)] {
        let Some(setup) = Setup::new(name) else {
            return;
        };
        let _deferring = setup.router.defer_routes().unwrap();
        let mut vectors = setup.router.allocate(count).unwrap();
        for vector in 0..count {
            vectors.update(&[(vector, to_cpu(vector))]).unwrap();
        }
        let found = (setup.commits(), setup.calls.irqfd.value());
        assert_eq!(found, (commits, irqfds), "{count} vectors");
    }
}

#[test]
fn vectors_unmasked_one_by_one_lose_no_interrupt() {
    let Some(setup) = Setup::new("vectors_unmasked_one_by_one_lose_no_interrupt") else {
        return;
    };
    let deferring = setup.router.defer_routes().unwrap();
    let mut vectors = setup.router.allocate(64).unwrap();
    for vector in 0..64 {
        let trigger = vectors.trigger(vector).unwrap();
        vectors.update(&[(vector, to_cpu(vector))]).unwrap();
        trigger.write(1).unwrap();
        deferring.flush();
        assert_eq!(setup.arrived_at_last(1), [vector]);
    }
    assert_eq!(setup.commits(), 64, "each has fired, so it does not wait");
    for vector in 0..64 {
        vectors.trigger(vector).unwrap().write(1).unwrap();
    }
    assert_eq!(setup.arrived_at_last(64), (0..64).collect::<Vec<_>>());
}

#[test]
fn interrupts_before_and_after_the_commit_arrive_once_each() {
    let Some(setup) = Setup::new("interrupts_before_and_after_the_commit_arrive_once_each") else {
        return;
    };
    let _deferring = setup.router.defer_routes().unwrap();
    let mut vectors = setup.router.allocate(16).unwrap();
    for vector in 0..16 {
        vectors.trigger(vector).unwrap().write(1).unwrap();
        vectors.update(&[(vector, to_cpu(vector))]).unwrap();
    }
    assert_eq!((setup.commits(), setup.calls.irqfd.value()), (1, 16));
    assert_eq!(setup.arrived_at_last(16), (0..16).collect::<Vec<_>>(), "without a poll");
    vectors.trigger(3).unwrap().write(1).unwrap();
    assert_eq!(setup.arrived_at_last(1), [3]);
    vectors.update(&[(3, to_cpu(20))]).unwrap();
    assert_eq!(setup.commits(), 1, "its new route is deferred again");
}

#[test]
fn a_vector_that_fires_often_wakes_the_vmm_once() {
    let Some(setup) = Setup::new("a_vector_that_fires_often_wakes_the_vmm_once") else {
        return;
    };
    let deferring = setup.router.defer_routes().unwrap();
    let mut vectors = setup.router.allocate(2).unwrap();
    vectors.update(&[(0, to_cpu(0))]).unwrap();
    vectors.update(&[(1, to_cpu(1))]).unwrap();
    let trigger = vectors.trigger(0).unwrap();
    let mut wakeups = 0;
    for _ in 0..1000 {
        trigger.write(1).unwrap();
        if is_readable(&deferring) {
            wakeups += 1;
            deferring.flush();
        }
        assert_eq!(setup.arrived_at_last(1), [0]);
    }
    assert_eq!((wakeups, setup.commits()), (1, 1));
    assert_eq!(setup.calls.irqfd.value(), 2, "the other one has its route too");
}

#[test]
fn a_masked_deferred_vector_fires_once_when_it_is_unmasked() {
    let name = "a_masked_deferred_vector_fires_once_when_it_is_unmasked";
    let Some(setup) = Setup::new(name) else {
        return;
    };
    let deferring = setup.router.defer_routes().unwrap();
    let mut vectors = setup.router.allocate(1).unwrap();
    let trigger = vectors.trigger(0).unwrap();
    vectors.update(&[(0, to_cpu(0))]).unwrap();
    trigger.write(1).unwrap();
    vectors.update(&[(0, None)]).unwrap();
    trigger.write(1).unwrap();
    assert!(!is_readable(&deferring) && is_signalled(&trigger));
    deferring.flush();
    assert!(setup.arrived().is_empty());
    vectors.update(&[(0, to_cpu(5))]).unwrap();
    assert!(is_readable(&deferring));
    deferring.flush();
    deferring.flush();
    assert_eq!(setup.arrived_at_last(1), [5], "its latest message");
    assert_eq!(setup.commits(), 1);
}

#[test]
fn defers_a_new_message_but_not_the_message_of_a_committed_route() {
    let Some(setup) = Setup::new("defers_a_new_message_but_not_the_message_of_a_committed_route")
    else {
        return;
    };
    let deferring = setup.router.defer_routes().unwrap();
    let mut vectors = setup.router.allocate(2).unwrap();
    vectors.update(&[(0, to_cpu(0)), (1, to_cpu(1))]).unwrap();
    assert_eq!((setup.commits(), setup.calls.irqfd.value()), (1, 2));
    vectors.update(&[(0, to_cpu(7))]).unwrap();
    assert_eq!((setup.commits(), setup.calls.irqfd.value()), (1, 3), "its irqfd is detached first");
    vectors.update(&[(1, None)]).unwrap();
    vectors.update(&[(1, to_cpu(1))]).unwrap();
    assert_eq!((setup.commits(), setup.calls.irqfd.value()), (1, 5));
    vectors.trigger(0).unwrap().write(1).unwrap();
    deferring.flush();
    assert_eq!(setup.arrived_at_last(1), [7]);
    assert_eq!((setup.commits(), setup.calls.irqfd.value()), (2, 6));
}

#[test]
fn commits_every_change_immediately_if_the_vmm_does_not_poll() {
    let Some(setup) = Setup::new("commits_every_change_immediately_if_the_vmm_does_not_poll")
    else {
        return;
    };
    let mut vectors = setup.router.allocate(4).unwrap();
    (0..2).for_each(|vector| vectors.update(&[(vector, to_cpu(vector))]).unwrap());
    assert_eq!((setup.commits(), setup.calls.irqfd.value()), (2, 2));
    let deferring = setup.router.defer_routes().unwrap();
    let second = setup.router.defer_routes();
    assert_eq!(second.unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
    vectors.update(&[(2, to_cpu(2))]).unwrap();
    assert_eq!((setup.commits(), setup.calls.irqfd.value()), (2, 2));
    drop(deferring);
    assert_eq!((setup.commits(), setup.calls.irqfd.value()), (3, 3));
    vectors.update(&[(3, to_cpu(3))]).unwrap();
    assert_eq!((setup.commits(), setup.calls.irqfd.value()), (4, 4));
}

#[test]
fn removes_deferred_vectors_with_their_function() {
    let Some(setup) = Setup::new("removes_deferred_vectors_with_their_function") else {
        return;
    };
    let deferring = setup.router.defer_routes().unwrap();
    let mut vectors = setup.router.allocate(1).unwrap();
    vectors.update(&[(0, to_cpu(0))]).unwrap();
    let trigger = vectors.trigger(0).unwrap();
    drop(vectors);
    trigger.write(1).unwrap();
    assert!(!is_readable(&deferring));
    deferring.flush();
    assert!(setup.arrived().is_empty());
    assert_eq!((setup.commits(), setup.calls.irqfd.value()), (0, 0));
}

/// With 32-bit APIC IDs, KVM refuses a message whose upper address has one of its lower 8 bits set
/// (`kvm_msi_route_invalid`), and with it the whole table.
#[test]
fn a_refused_table_does_not_make_the_vmm_spin_and_loses_no_interrupt() {
    let name = "a_refused_table_does_not_make_the_vmm_spin_and_loses_no_interrupt";
    let Some(setup) = Setup::new(name) else {
        return;
    };
    let flags = u64::from(kvm_bindings::KVM_X2APIC_API_USE_32BIT_IDS);
    let cap = kvm_bindings::kvm_enable_cap {
        cap: kvm_bindings::KVM_CAP_X2APIC_API,
        args: [flags, 0, 0, 0],
        ..Default::default()
    };
    setup.vm.enable_cap(&cap).unwrap();
    let deferring = setup.router.defer_routes().unwrap();
    let mut vectors = setup.router.allocate(2).unwrap();
    let refused = MsiMessage { address: 0x1_fee0_0000, data: FIRST };
    vectors.update(&[(0, Some(refused))]).unwrap();
    vectors.update(&[(1, to_cpu(1))]).unwrap();
    let trigger = vectors.trigger(1).unwrap();
    trigger.write(1).unwrap();
    deferring.flush();
    assert!(!is_readable(&deferring));
    assert_eq!((setup.commits(), setup.calls.irqfd.value()), (1, 0));
    vectors.update(&[(0, to_cpu(0))]).unwrap();
    trigger.write(1).unwrap();
    deferring.flush();
    assert_eq!(setup.arrived_at_last(1), [1]);
    assert_eq!((setup.commits(), setup.calls.irqfd.value()), (2, 2));
}

/// An event of a test with four vectors.
#[derive(Clone, Debug)]
enum Event {
    /// A batch: each vector gets a new interrupt, or is masked.
    Update(BTreeMap<u16, Option<u16>>),
    Fire(u16),
    /// The VMM starts to poll, or stops.
    Poll,
}

fn event() -> impl Strategy<Value = Event> {
    // Each vector has its own interrupts, so that an interrupt identifies its vector.
    let change = (0..4_u16, prop::option::weighted(0.7, 0..3_u16));
    let change =
        change.prop_map(|(vector, number)| (vector, number.map(|number| vector * 3 + number)));
    prop_oneof![
        4 => prop::collection::vec(change, 1..4)
            .prop_map(|changes| Event::Update(changes.into_iter().collect())),
        6 => (0..4_u16).prop_map(Event::Fire),
        1 => Just(Event::Poll),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn an_interrupt_arrives_as_the_latest_message_or_is_pending(
        events in prop::collection::vec(event(), 1..60),
    ) {
        let Some(setup) = Setup::new("an_interrupt_arrives_as_the_latest_message_or_is_pending")
        else {
            return Ok(());
        };
        let mut vectors = setup.router.allocate(4).unwrap();
        let mut deferring = None;
        // The naive model: the unmasked vectors, and those that fired and have not arrived.
        let mut unmasked: BTreeMap<u16, u16> = BTreeMap::new();
        let mut fired: BTreeSet<u16> = BTreeSet::new();
        for event in events {
            match event {
                Event::Update(changes) => {
                    let messages: Vec<_> = changes.iter()
                        .map(|(vector, number)| (*vector, number.and_then(to_cpu))).collect();
                    vectors.update(&messages).unwrap();
                    for (vector, number) in changes {
                        unmasked.remove(&vector);
                        unmasked.extend(number.map(|number| (vector, number)));
                    }
                }
                Event::Fire(vector) => {
                    vectors.trigger(vector).unwrap().write(1).unwrap();
                    fired.insert(vector);
                }
                Event::Poll => deferring = match deferring.take() {
                    None => Some(setup.router.defer_routes().unwrap()),
                    Some(_) => None,
                },
            }
            deferring.iter().for_each(DeferredRoutes::flush);
            let expected: BTreeSet<u16> =
                fired.iter().filter_map(|vector| unmasked.get(vector).copied()).collect();
            let found = setup.arrived_at_last(expected.len());
            prop_assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
            fired.retain(|vector| !unmasked.contains_key(vector));
            // KVM resets the eventfd of an irqfd when it detaches the irqfd.
            for vector in (0..4).filter(|vector| !unmasked.contains_key(vector)) {
                let trigger = vectors.trigger(vector).unwrap();
                prop_assert_eq!(is_signalled(&trigger), fired.contains(&vector));
            }
        }
        drop(vectors);
        prop_assert!(setup.router.shared.lock().is_empty());
    }
}
