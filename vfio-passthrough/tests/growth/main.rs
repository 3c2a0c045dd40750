//! Nothing grows faster than the guest: calls, mappings, memory slots and commits of routes, by RAM,
//! by devices and by vectors; and what happens at the limits of the kernel.
//!
//! `cargo test -p vfio-passthrough --all-features --bench scale` prints the same for large guests.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test that fails panics"
)]

mod simulation;

use std::num::NonZeroU64;

#[cfg(target_arch = "x86_64")]
use kvm_ioctls::{Cap, Kvm};
use simulation::{Counts, MAPPINGS, ROUTES, Ram, SLOTS, Simulation, Unmask};

const GIB: u64 = 1 << 30;
const MIB_2: u64 = 2 << 20;

fn adjacent(piece: u64) -> Ram {
    Ram::Adjacent(NonZeroU64::new(piece).unwrap())
}

fn apart(piece: u64) -> Ram {
    Ram::Apart(NonZeroU64::new(piece).unwrap())
}

fn with_ram(size: u64, ram: Ram) -> Counts {
    Simulation::new().with_ram(size, ram).counts()
}

fn with_devices(count: u64, vectors: u16) -> Counts {
    unmasked(count, vectors, Unmask::Together)
}

fn unmasked(count: u64, vectors: u16, unmask: Unmask) -> Counts {
    let simulation = Simulation::new().with_ram(GIB, adjacent(GIB));
    simulation.with_devices(count, vectors, unmask).counts()
}

/// Each count at 1, 2, 4 and 8 times a size grows by at most twice of what it grew before.
#[track_caller]
fn assert_linear(at: impl Fn(u64) -> Counts) {
    let counts = [1, 2, 4, 8].map(at);
    let of = |which: fn(&Counts) -> u64| counts.each_ref().map(which);
    let all = [
        ("calls that map", of(|counts| counts.map_calls)),
        ("mappings", of(|counts| counts.mappings)),
        ("slots", of(|counts| counts.slots)),
        ("other calls", of(|counts| counts.other_calls)),
        ("commits", of(|counts| counts.commits)),
        ("routes", of(|counts| counts.routes)),
        ("eventfds", of(|counts| counts.eventfds)),
    ];
    for (name, values) in all {
        let grown = |pair: &[u64]| pair[1].saturating_sub(pair[0]);
        let growth = values.windows(2).map(grown).collect::<Vec<_>>();
        let is_linear = growth.windows(2).all(|pair| pair[1] <= 2 * pair[0]);
        assert!(is_linear, "{name}: {values:?}");
    }
    assert!(counts.iter().all(|counts| counts.refused.is_empty()), "{counts:?}");
}

#[test]
fn ram_in_adjacent_pieces_takes_two_mappings_and_slots_of_any_size() {
    for (size, piece) in [(4 * GIB, MIB_2), (64 * GIB, MIB_2), (1 << 40, GIB), (16 << 40, GIB)] {
        let counts = with_ram(size, adjacent(piece));
        assert_eq!((counts.map_calls, counts.mappings, counts.slots), (2, 2, 2), "{size:#x}");
    }
}

#[test]
fn ram_in_pieces_that_are_apart_grows_with_their_number() {
    assert_linear(|times| with_ram(times * 512 * GIB, apart(GIB)));
}

#[test]
fn devices_grow_with_their_number() {
    for vectors in [1, 64, 256] {
        assert_linear(|times| with_devices(times, vectors));
    }
}

#[test]
fn vectors_of_a_device_grow_with_their_number() {
    assert_linear(|times| with_devices(1, times as u16 * 256));
    assert_linear(|times| unmasked(1, times as u16 * 64, Unmask::Each));
}

#[test]
fn ram_in_more_pieces_than_a_container_has_mappings_is_refused_before_the_first_is_mapped() {
    let pieces = MAPPINGS as u64 + 1;
    let counts = with_ram(pieces * MIB_2, apart(MIB_2));
    assert_eq!((counts.map_calls, counts.mappings, counts.slots), (0, 0, SLOTS));
    let [full, slots] = counts.refused.as_slice() else { panic!("{counts:?}") };
    let begin = "65536 mappings for DMA are needed, and the container takes 65535 more; ";
    assert!(full.starts_with(begin) && full.contains("dma_entry_limit"), "{full}");
    assert!(slots.starts_with("slot 32764: ") && slots.contains("(os error 28)"), "{slots}");
}

#[test]
fn vectors_beyond_the_routes_of_a_vm_stay_masked_and_cost_few_calls() {
    let counts = with_devices(3, 2048);
    assert_eq!((counts.routes, counts.eventfds), (ROUTES, 3 * 2048));
    // The second device finds its last route by halves. The third one finds none.
    assert!(counts.commits <= 1 + 11, "{counts:?}");
}

#[test]
#[cfg(target_arch = "x86_64")]
fn limits_are_those_of_kvm() {
    let Ok(kvm) = Kvm::new() else {
        return eprintln!("limits_are_those_of_kvm did not run: /dev/kvm does not open here");
    };
    let routes = kvm.check_extension_int(Cap::IrqRouting);
    assert_eq!((kvm.get_nr_memslots() as u64, routes as u64), (SLOTS, ROUTES + 40));
}
