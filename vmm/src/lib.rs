//! A small KVM VMM that boots a Linux guest with PCI devices of the host assigned to it.
//!
//! [`run`] does all that the program does. Its parts, in the order in which they are put together:
//! [`kvm`] (the VM), the layout (crate `resources`), [`memory`], [`boot`] (kernel, initramfs, ACPI), [`machine`] (buses and
//! devices, of crate `devices`), [`vcpu`]. Each ends what it began when it is dropped.
//!
//! The main thread waits for events ([`events`]); one thread a CPU runs the guest. Whoever ends it all says
//! so in [`stop`].

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
mod error;
pub mod events;
pub mod kvm;
pub mod machine;
pub mod memory;
pub mod stats;
pub mod stop;
pub mod vcpu;

use std::sync::Arc;

use resources::{IoReach, Layout, LayoutRequest};

pub use cli::{Args, MemorySize, SizeError};
pub use error::Error;
pub use stop::Outcome;

use crate::boot::{Boot, Kernel, Platform};
use crate::console::RawTerminal;
use crate::events::MainLoop;
use crate::machine::Buses;
use crate::memory::Ram;
use crate::stats::Stats;
use crate::stop::Stop;
use crate::vcpu::{RunningVcpu, cpuid, registers};

/// Boots the guest that `args` describe and returns when it, or the user, has ended it.
pub fn run(args: &Args) -> Result<Outcome, Error> {
    let stats = Arc::new(Stats::default());
    let outcome = run_guest(args, &stats);
    match &args.stats {
        Some(path) => stats.write(path).and(outcome),
        None => outcome,
    }
}

fn run_guest(args: &Args, stats: &Arc<Stats>) -> Result<Outcome, Error> {
    let signals = events::block_signals()?;
    memory::check_host(args.memory)?;
    let kvm = kvm::open()?;
    machine::check_cpus(&kvm, args)?;
    let supported = cpuid::supported(&kvm)?;
    let vm = kvm::create_vm(&kvm, &stats.kvm_ioctls)?;
    stats.phase("kvm");

    let layout = Layout::plan(&LayoutRequest {
        ram: args.memory.bytes(),
        address_bits: cpuid::address_bits(&supported),
        reach: IoReach::Unrestricted,
        reserved: &[],
        bars: &[],
    })?;
    log::info!("guest physical layout:\n{layout}");
    let ram = Ram::new(&layout.ram)?;
    layout.ram.iter().for_each(|_| stats.ram_regions.add_one());
    let kernel = Kernel::load(&args.kernel, ram.memory(), &layout)?;
    let platform = Platform {
        cpus: args.cpus,
        slots: Vec::new(),
    };
    let boot = Boot {
        memory: ram.memory(),
        layout: &layout,
        platform: &platform,
        initrd: args.initrd.as_deref(),
        cmdline: &args.cmdline,
    };
    let entry = boot.prepare(&kernel)?;
    stats.phase("load");

    let stop = Arc::new(Stop::new()?);
    let _slots = ram.place(&vm, &stats.kvm_ioctls)?;
    let mut buses = Buses::default();
    let console = buses.add_console(&vm, &stop, stats)?;
    buses.add_power(&stop, stats)?;
    buses.add_pci(
        machine::pci_root()?,
        &layout,
        std::env::var_os("PCI_PORTS").is_some(),
        stats,
    )?;
    let vcpus = machine::create_vcpus(&vm, &supported, args.cpus, stats)?;
    if let Some(first) = vcpus.first() {
        registers::set_up(&first.fd, ram.memory(), entry, &stats.kvm_ioctls)?;
    }
    vcpu::prepare_kicks()?;
    let mut main_loop = MainLoop::new(&stop, signals, &console.pending)?;
    let terminal = RawTerminal::enter();
    main_loop.add(Arc::new(std::sync::Mutex::new(console.keyboard)));
    let shared = Arc::new(vcpu::Machine {
        buses: buses.into_manager(),
        stats: Arc::clone(stats),
        stop: Arc::clone(&stop),
    });
    stats.phase("set_up");

    let running: Vec<RunningVcpu> = vcpus
        .into_iter()
        .map(|vcpu| vcpu.start(Arc::clone(&shared)))
        .collect::<Result<_, _>>()?;
    main_loop.run()?;
    stats.phase("guest");
    drop(running);
    drop(shared);
    drop(main_loop);
    drop(terminal);
    stop_outcome(stop)
}

/// All others who held the stop are gone by now.
fn stop_outcome(stop: Arc<Stop>) -> Result<Outcome, Error> {
    match Arc::into_inner(stop).and_then(Stop::into_outcome) {
        Some(Outcome::Failed(error)) => Err(error),
        Some(outcome) => Ok(outcome),
        None => Err(Error::Vcpu("the VMM stopped and nobody said why".into())),
    }
}
