//! Prints a table of guests that are larger than any machine at hand, by simulation on the model:
//! calls, mappings, memory slots and routes, and where a limit of the kernel is met.
//!
//! Run it with `cargo bench -p vfio-passthrough --all-features --bench scale`.
#![allow(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    missing_docs,
    reason = "a bench that fails panics"
)]

#[path = "../tests/growth/simulation.rs"]
mod simulation;

use std::num::NonZeroU64;

use simulation::{Counts, Ram, Simulation, Unmask};

const TIB: u64 = 1 << 40;
const MEMORY: [u64; 3] = [TIB, 4 * TIB, 16 * TIB];
const PAGES: [(&str, u64); 2] = [("2M", 2 << 20), ("1G", 1 << 30)];
const DEVICES: [u64; 5] = [0, 1, 2, 16, 64];
const VECTORS: [u16; 2] = [63, 2048];

fn main() {
    ram();
    devices();
}

fn ram() {
    println!("| RAM | pages | in the process | calls | mappings | memory slots | refused |");
    println!("|---|---|---|---|---|---|---|");
    for size in MEMORY {
        for (name, page) in PAGES {
            let page = NonZeroU64::new(page).unwrap();
            for (how, ram) in [("adjacent", Ram::Adjacent(page)), ("each apart", Ram::Apart(page))]
            {
                let counts = Simulation::new().with_ram(size, ram).counts();
                let Counts { map_calls, mappings, slots, refused, .. } = counts;
                let (tib, refused) = (size / TIB, refused.join("; "));
                println!(
                    "| {tib} TiB | {name} | {how} | {map_calls} | {mappings} | {slots} | {refused} |"
                );
            }
        }
    }
}

fn devices() {
    println!(
        "\n| devices | vectors each | calls | commits | routes, irqfds | eventfds | memory slots | mappings |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let ram = Ram::Adjacent(NonZeroU64::new(1 << 30).unwrap());
    for vectors in VECTORS {
        for count in DEVICES {
            let simulation = Simulation::new().with_ram(16 * TIB, ram);
            let counts = simulation.with_devices(count, vectors, Unmask::Together).counts();
            let Counts { mappings, slots, other_calls, commits, routes, eventfds, .. } = counts;
            println!(
                "| {count} | {vectors} | {other_calls} | {commits} | {routes} | {eventfds} | {slots} | {mappings} |"
            );
        }
    }
}
