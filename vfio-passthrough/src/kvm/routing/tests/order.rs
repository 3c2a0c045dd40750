//! Tests of the order of calls: an irqfd is detached before its route is removed or changed, and no
//! interrupt is lost or late while routes are committed.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use super::deferred::{Setup, to_cpu};
use super::*;

/// Makes KVM refuse to detach the irqfd: its file descriptor is no longer an eventfd. KVM still
/// holds the eventfd itself.
fn spoil(eventfd: &EventFd) {
    let file = File::open("/dev/null").unwrap();
    // SAFETY: both files are open. The call closes the eventfd's file descriptor, and its owner
    // later closes the new file.
    let number = unsafe { libc::dup2(file.as_raw_fd(), eventfd.as_raw_fd()) };
    assert_eq!(number, eventfd.as_raw_fd());
}

#[test]
fn a_route_stays_if_its_irqfd_cannot_be_detached() {
    let Some((calls, router)) = router("a_route_stays_if_its_irqfd_cannot_be_detached", 24..4096)
    else {
        return;
    };
    let mut vectors = router.allocate(3).unwrap();
    vectors.update(&messages(0..3)).unwrap();
    let trigger = vectors.trigger(1).unwrap();
    spoil(&trigger);
    let counts = || (calls.set_gsi_routing.value(), calls.irqfd.value());
    assert_eq!(counts(), (1, 3));
    let refused = |changes: &[(u16, Option<MsiMessage>)], vectors: &mut Box<dyn MsiVectors>| {
        let error = vectors.update(changes).unwrap_err().raw_os_error();
        assert_eq!(error, Some(libc::EINVAL), "{changes:?}");
    };
    refused(&[(1, message(9))], &mut vectors);
    assert_eq!(counts(), (1, 4), "no new route while the old irqfd is attached");
    refused(&[(0, message(8)), (1, message(9))], &mut vectors);
    assert_eq!(counts(), (1, 6), "no new route for the rest of its batch");
    refused(&[(1, None)], &mut vectors);
    assert_eq!(counts(), (1, 7));
    drop(vectors);
    // The routes of the two others are removed. One of their irqfds was detached before, and one is
    // detached now. The third irqfd stays, with its route.
    assert_eq!(counts(), (2, 9));
    let table = router.shared.lock();
    assert_eq!(table.routed(), [25]);
}

/// How often all vectors are allocated, unmasked one by one, and freed.
const ROUNDS: u16 = 20;
const VECTORS: u16 = 64;

/// Unmasks vectors one by one, with all the commits that it causes, and frees them. Between them it
/// masks and unmasks the round's first vector. While that vector exists, its trigger is in `fires`.
fn churn(router: &KvmRouter, fires: &Mutex<Option<Arc<EventFd>>>) {
    for _ in 0..ROUNDS {
        let mut vectors = router.allocate(VECTORS).unwrap();
        vectors.update(&[(0, to_cpu(0))]).unwrap();
        *fires.lock().unwrap() = Some(vectors.trigger(0).unwrap());
        for vector in 1..VECTORS {
            vectors.update(&[(vector, to_cpu(vector))]).unwrap();
            if vector % 5 == 0 {
                vectors.update(&[(0, None)]).unwrap();
                vectors.update(&[(0, to_cpu(0))]).unwrap();
            }
        }
        // The lock waits until the other thread's interrupt has arrived.
        *fires.lock().unwrap() = None;
    }
}

#[test]
fn no_interrupt_is_lost_or_late_while_others_are_unmasked() {
    let name = "no_interrupt_is_lost_or_late_while_others_are_unmasked";
    let Some(setup) = Setup::new(name) else {
        return;
    };
    let deferring = setup.router.defer_routes().unwrap();
    let (fires, done) = (Mutex::new(None), AtomicBool::new(false));
    let (mut fired, mut arrived) = (0_u64, 0_u64);
    std::thread::scope(|scope| {
        let (router, fires, done) = (&setup.router, &fires, &done);
        scope.spawn(move || {
            churn(router, fires);
            done.store(true, Ordering::Release);
        });
        // This thread does the work of a VMM's main thread.
        scope.spawn(move || {
            while !done.load(Ordering::Acquire) {
                deferring.flush();
                std::thread::yield_now();
            }
        });
        while !done.load(Ordering::Acquire) {
            let held = fires.lock().unwrap();
            let Some(trigger) = held.as_ref() else {
                drop(held);
                std::thread::yield_now();
                continue;
            };
            trigger.write(1).unwrap();
            fired += 1;
            // The lock is held until the interrupt has arrived: the round cannot end before.
            arrived += setup.arrived_at_last(1).len() as u64;
        }
    });
    println!("{fired} interrupts among {} vectors", ROUNDS * VECTORS);
    assert_eq!(arrived, fired);
    assert!(fired > u64::from(ROUNDS), "{fired}");
    let commits = setup.calls.set_gsi_routing.value();
    // Each round has at most one commit for each 16 vectors, one for its first vector, and one at
    // its end.
    let bound = u64::from(ROUNDS) * 6;
    assert!(commits <= bound, "{commits} commits, {fired} fired");
}
