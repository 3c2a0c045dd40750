//! Runs a guest from its first boot to its last end.

use std::path::PathBuf;
use std::sync::Arc;

use super::control::{Control, Server};
use super::resources::Resources;
use super::stats::{Stats, StatsFile};
use super::stop::Outcome;
use crate::config::{Config, Thread};
use crate::error::Error;
use crate::guest::arch;
use crate::host::passed_fds::PassedFds;
use crate::host::seccomp::{self, Filter};
use crate::host::signals;
use crate::host::{limits, memory};

/// Boots the guest of `config` and returns when the guest or the user ends it.
pub(crate) fn run(config: &Config) -> Result<Outcome, Error> {
    arch::check(config)?;
    let passed = PassedFds::take(config)?;
    let stats = Arc::new(Stats::default());
    one_heap();
    seccomp::prepare(&config.seccomp)?;
    let file = config.stats.as_ref().map(StatsFile::create).transpose()?;
    let outcome = run_guest(config, passed, &stats);
    match file {
        Some(file) => file.write(&stats).and(outcome),
        None => outcome,
    }
}

/// Keeps the C library from creating a heap per thread (128 MiB of address space, for threads that
/// allocate almost nothing), and from counting the host's CPUs for it.
fn one_heap() {
    // SAFETY: sets a number under the allocator's lock.
    let _ = unsafe { nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1) };
}

fn run_guest(config: &Config, passed: PassedFds, stats: &Arc<Stats>) -> Result<Outcome, Error> {
    memory::check(config.memory, !config.vfio.is_empty())?;
    let files = limits::check(config)?;
    let signals = signals::block()?;
    let control = Arc::new(Control::new()?);
    let serve = |path: &PathBuf| {
        Server::start(path, &control, Filter::new(&config.seccomp, Thread::Control)?)
    };
    let _server = config.control.as_ref().map(serve).transpose()?;
    let (resources, mut vm) = Resources::open(config, (passed, files), stats)?;
    control.configure(resources.configuration(config, &vm));
    let outcome = loop {
        match vm.run(&resources, config, (&signals, &control), stats) {
            Ok(Outcome::Reset) if !config.no_reboot => vm = resources.next_vm(stats)?,
            outcome => break outcome,
        }
    };
    resources.count(stats);
    match &outcome {
        Ok(_) => resources.close(),
        // A function may have failed to end. The devices are closed before RAM is unmapped.
        Err(_) => drop(resources),
    }
    stats.phase("close");
    outcome
}
