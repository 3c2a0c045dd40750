//! A small KVM VMM that boots a Linux guest with PCI devices of the host assigned to it.
//!
//! [`run`] does all that the program does. Its parts, in the order in which they are put together: [`kvm`]
//! (the VM), [`vfio`] (the devices), [`layout`] (by crate `resources`), [`memory`], [`boot`] (kernel, initramfs,
//! ACPI), [`machine`] (buses and fixed devices, of crate `devices`), [`vcpu`]. Each ends what it began when
//! it is dropped.
//!
//! The main thread waits for events ([`events`]); one thread a CPU runs the guest. Whoever ends it all says
//! so in [`stop`].
//!
//! [`prepare`] is what comes before: the commands that look at the host and hand devices to VFIO.

#![cfg_attr(
    test,
    allow(
        clippy::arithmetic_side_effects,
        reason = "tests say what they expect by panicking"
    )
)]

pub mod boot;
mod cli;
pub mod console;
pub mod constant;
pub mod control;
mod error;
pub mod events;
pub mod files;
pub mod guest;
pub mod handed;
pub mod interrupts;
pub mod kvm;
pub mod landlock;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod posted;
pub mod prepare;
pub mod seccomp;
pub mod stats;
pub mod still;
pub mod stop;
pub mod vcpu;
pub mod vfio;

use std::path::PathBuf;
use std::sync::Arc;

pub use cli::{
    Args, Command, CommandLine, HugePages, Memory, MemoryError, MemorySize, Passthrough, PassthroughError,
    SizeError, Source,
};
pub use error::Error;
pub use stop::Outcome;

use crate::control::{Control, Server};
use crate::guest::Host;
use crate::handed::Handed;
use crate::seccomp::Thread;
use crate::stats::{Stats, StatsFile};

/// Boots the guest that `args` describe and returns when it, or the user, has ended it.
pub fn run(args: &Args) -> Result<Outcome, Error> {
    let handed = Handed::take(args)?;
    let stats = Arc::new(Stats::default());
    one_heap();
    args.seccomp.prepare()?;
    let file = args.stats.as_ref().map(StatsFile::create).transpose()?;
    let outcome = run_guest(args, handed, &stats);
    match file {
        Some(file) => file.write(&stats).and(outcome),
        None => outcome,
    }
}

/// Keeps the C library from giving each thread a heap of its own (128 MiB of address space, for threads that allocate
/// next to nothing), and from looking for that at how many CPUs there are.
fn one_heap() {
    // SAFETY: sets a number, under the allocator's lock.
    let _ = unsafe { nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1) };
}

fn run_guest(args: &Args, handed: Handed, stats: &Arc<Stats>) -> Result<Outcome, Error> {
    let signals = events::block_signals()?;
    let control = Arc::new(Control::default());
    let serve = |path: &PathBuf| Server::start(path, &control, args.seccomp.filter(Thread::Control)?);
    let _server = args.control.as_ref().map(serve).transpose()?;
    let (host, mut vm) = Host::open(args, handed, stats)?;
    control.configure(host.configuration(args, &vm));
    let outcome = loop {
        match vm.run(&host, args, (&signals, &control), stats) {
            Ok(Outcome::Reset) if !args.no_reboot => vm = host.another(stats)?,
            outcome => break outcome,
        }
    };
    host.count(stats);
    outcome
}

/// The README's code is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
