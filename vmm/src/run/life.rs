//! One life of the guest: boot, run, and shutdown in the correct order.

use std::sync::{Arc, Mutex, PoisonError};

use devices::{DevFn, HostBridge, PciRoot};
use kvm_ioctls::VcpuFd;
use nix::sys::signalfd::SignalFd;
use serde_json::Value;
use vfio_passthrough::PassthroughFunction;
use vfio_passthrough::kvm::KvmHost;

use super::control::{Control, Life};
use super::keyboard::Keyboard;
use super::main_loop::{FirstRoutes, MainLoop};
use super::resources::{Resources, count_calls};
use super::stats::{InUse, Stats};
use super::stop::{Outcome, Stop, StopOnRequest};
use super::vcpu::{self, Gate, Vcpu, Vcpus};
use super::vm::Vm;
use crate::config::{Config, Thread};
use crate::error::Error;
use crate::guest::arch::{self, Entry};
use crate::guest::boot::{Boot, Platform};
use crate::guest::console::RawTerminal;
use crate::guest::machine::{self, Buses, Console, PowerButton};
use crate::host::landlock;
use crate::passthrough::events::{Changes, DeviceEvents};
use crate::passthrough::function::GuestFunction;
use crate::passthrough::functions::{End, Functions};
use crate::passthrough::hot_plug::{HotPlug, put};
use crate::passthrough::slots::{Ejected, Ejections, Registers, Slots};

impl Vm {
    /// Boots the guest and runs it to its end.
    pub(crate) fn run(
        self,
        resources: &Resources,
        config: &Config,
        asked: (&Arc<SignalFd>, &Arc<Control>),
        stats: &Arc<Stats>,
    ) -> Result<Outcome, Error> {
        let (_, control) = asked;
        let changes =
            Changes::new(machine::has_hot_plug(config)).map_err(Error::system("eventfd"))?;
        let changes = Arc::new(changes);
        let pci = self.pci_root(stats, &changes)?;
        let entry = self.load(resources, config)?;
        stats.phase("load");
        let slots = resources.ram.place(self.kvm_host.memory())?;
        // Some interrupt controllers take interrupts only when all vCPUs exist.
        let vcpus = self.vcpus(resources, config, entry, stats)?;
        let stop = Arc::new(Stop::new()?);
        let (mut buses, console, power_button) =
            self.buses(resources, config, pci.clone(), &stop, stats)?;
        let plug = |_| self.hot_plug((pci, &changes), resources, control, stats);
        let hot_plug = config.control.as_ref().map(plug).transpose()?.flatten();
        let slots_of_guest = connect(&mut buses, hot_plug.as_ref(), stats)?;
        let shared = self.machine(resources, buses, &stop, stats);
        let terminal = RawTerminal::enter();
        let mut main_loop = self.main_loop(resources, asked, (console, config), &stop, stats)?;
        let events = device_events((changes, slots_of_guest), config, &stop);
        main_loop.add(events.clone());
        if self.is_first {
            restrict_threads(resources, config)?;
        }
        stats.phase("set_up");

        control.begin(Life {
            vcpus: Vcpus::start(vcpus, &shared)?,
            stop: Arc::clone(&stop),
            power_button,
            counters: self.counters(resources, stats),
            hot_plug,
        });
        let looped = main_loop.run();
        stats.phase("guest");
        // Stop the vCPUs first, so that nothing programs the devices any more; then shut the
        // devices down; then free the memory that they access.
        control.end();
        resources.interrupts.count(&self.functions.addresses(), &stats.devices.functions);
        events.lock().unwrap_or_else(PoisonError::into_inner).catch_up();
        let end = if stop.is_reboot() && !config.no_reboot { End::Reboot } else { End::Close };
        let shut_down = self.functions.shutdown(end);
        drop((shared, main_loop, events, slots, terminal));
        count(&self.kvm_host, &self.functions, stats);
        stats.phase("end");
        looped.and(outcome_of(stop)).and_then(|outcome| shut_down.map(|()| outcome))
    }

    /// The main loop with the event sources that every life has.
    fn main_loop(
        &self,
        resources: &Resources,
        asked: (&Arc<SignalFd>, &Arc<Control>),
        (console, config): (Console, &Config),
        stop: &Arc<Stop>,
        stats: &Arc<Stats>,
    ) -> Result<MainLoop, Error> {
        let mut main_loop = MainLoop::new(stop, asked, &console.pending, stats)?;
        let keyboard = Keyboard::new(console.serial, console.drained, Arc::clone(stop));
        main_loop.add(Arc::new(Mutex::new(keyboard)));
        if config.control.is_some() || resources.assigned.iommu().is_some() {
            main_loop.add(Arc::new(Mutex::new(self.first_routes()?)));
        }
        Ok(main_loop)
    }

    fn first_routes(&self) -> Result<FirstRoutes, Error> {
        let deferred = self.kvm_host.router().defer_routes();
        deferred.map(FirstRoutes).map_err(Error::system("an epoll set for interrupts"))
    }

    /// Places the BARs, and loads kernel, initramfs and boot data into RAM.
    fn load(&self, resources: &Resources, config: &Config) -> Result<Entry, Error> {
        let bars = self.functions.bars();
        self.functions.place_bars(&resources.layout.with_bars(&bars))?;
        let kernel = resources.kernel(self.is_first)?;
        let platform = Platform {
            cpus: config.cpus,
            slots: self.functions.slots(),
            hot_plug: machine::has_hot_plug(config),
        };
        let boot = Boot {
            memory: resources.ram.memory(),
            layout: &resources.layout,
            platform: &platform,
            initrd: resources.files.initrd.as_ref(),
            pci_ports: config.pci_ports,
            cmdline: &config.cmdline,
        };
        boot.prepare(&kernel)
    }

    /// A bus with the host bridge in slot 0 and the assigned functions, which are reported by
    /// `changes`.
    fn pci_root(&self, stats: &Arc<Stats>, changes: &Changes) -> Result<Arc<PciRoot>, Error> {
        let root = PciRoot::new();
        root.insert(DevFn::from(0), Arc::new(HostBridge))?;
        let wrap = self.wrap(stats);
        for (place, function) in self.functions.iter() {
            put(&root, place, wrap(&function), changes)?;
        }
        Ok(Arc::new(root))
    }

    /// Makes the bus's view of a function.
    fn wrap(
        &self,
        stats: &Arc<Stats>,
    ) -> impl Fn(&Arc<PassthroughFunction>) -> GuestFunction + Send + Sync + 'static {
        let (coalesced, stats) = (Arc::clone(&self.coalesced), Arc::clone(stats));
        move |function| GuestFunction::new(function, coalesced.clone(), &stats.devices.functions)
    }

    /// The slots of the guest, whose devices come and go.
    fn hot_plug(
        &self,
        (bus, changes): (Arc<PciRoot>, &Arc<Changes>),
        resources: &Resources,
        control: &Control,
        stats: &Arc<Stats>,
    ) -> Result<Option<HotPlug>, Error> {
        let Some(interrupt) = machine::slots_changed(&self.fd, &stats.kvm_ioctls)? else {
            return Ok(None);
        };
        let ejections = Arc::new(Ejections::new(Arc::clone(control.ejected())));
        let present = self.functions.slots();
        let registers = Arc::new(Registers::new(present, Ejected(Arc::clone(&ejections))));
        Ok(Some(HotPlug {
            bus,
            kvm_host: Arc::clone(&self.kvm_host),
            layout: resources.layout.clone(),
            functions: self.functions.clone(),
            changes: Arc::clone(changes),
            assigned: Arc::clone(&resources.assigned),
            wrap: Box::new(self.wrap(stats)),
            slots: Arc::new(Slots::new(registers, interrupt, Arc::clone(control.ejected()))),
            ejections,
        }))
    }

    /// The buses with all devices, the console, and the power button.
    fn buses(
        &self,
        resources: &Resources,
        config: &Config,
        pci: Arc<PciRoot>,
        stop: &Arc<Stop>,
        stats: &Stats,
    ) -> Result<(Buses, Console, PowerButton), Error> {
        let counts = &stats.devices.fixed;
        let mut buses = Buses::default();
        let console = buses.add_console(&self.fd, (&stats.kvm_ioctls, counts))?;
        let power_button = buses.add_power_button(&self.fd, (&stats.kvm_ioctls, counts))?;
        buses.add_power(StopOnRequest(Arc::clone(stop)), counts)?;
        buses.add_pci(pci, &resources.layout, config.pci_ports, counts)?;
        Ok((buses, console, power_button))
    }

    fn vcpus(
        &self,
        resources: &Resources,
        config: &Config,
        entry: Entry,
        stats: &Stats,
    ) -> Result<Vec<Vcpu>, Error> {
        let calls = &stats.kvm_ioctls;
        let fds: Vec<VcpuFd> = arch::create(&self.fd, &resources.supported, config.cpus, calls)?;
        if let Some(first) = fds.first() {
            arch::set_up(first, resources.ram.memory(), entry, calls)?;
            self.coalesced.open(&self.fd, first)?;
        }
        Ok((0..).zip(fds).map(|(index, fd)| Vcpu { fd, index }).collect())
    }

    fn machine(
        &self,
        resources: &Resources,
        buses: Buses,
        stop: &Arc<Stop>,
        stats: &Arc<Stats>,
    ) -> Arc<vcpu::Machine> {
        Arc::new(vcpu::Machine {
            buses: buses.into_manager(),
            coalesced: Arc::clone(&self.coalesced),
            stats: Arc::clone(stats),
            stop: Arc::clone(stop),
            gate: Gate::default(),
            filter: Arc::clone(&resources.filters.vcpu),
        })
    }

    /// A closure that reads the current counters.
    fn counters(&self, resources: &Resources, stats: &Arc<Stats>) -> Box<dyn Fn() -> Value + Send> {
        let (stats, kvm_host) = (Arc::clone(stats), Arc::clone(&self.kvm_host));
        let (functions, assigned) = (self.functions.clone(), Arc::clone(&resources.assigned));
        let interrupts = Arc::clone(&resources.interrupts);
        Box::new(move || {
            let mut live = stats.as_ref().clone();
            let (memory_slots, gsis) = (kvm_host.memory().in_use(), kvm_host.router().in_use());
            live.in_use = InUse { memory_slots, gsis };
            count(&kvm_host, &functions, &live);
            interrupts.count(&functions.addresses(), &live.devices.functions);
            assigned.calls().iter().for_each(|calls| count_calls(calls, &live));
            live.json()
        })
    }
}

/// Puts the registers of hot-plug on the port bus, and returns the slots.
fn connect(
    buses: &mut Buses,
    hot_plug: Option<&HotPlug>,
    stats: &Stats,
) -> Result<Option<Arc<Slots>>, Error> {
    let Some(HotPlug { slots, .. }) = hot_plug else { return Ok(None) };
    buses.add_hot_plug(slots.registers(), &stats.devices.fixed)?;
    Ok(Some(Arc::clone(slots)))
}

/// The host events of the functions that come by `changes`; a failure stops the guest.
fn device_events(
    (changes, slots): (Arc<Changes>, Option<Arc<Slots>>),
    config: &Config,
    stop: &Arc<Stop>,
) -> Arc<Mutex<DeviceEvents>> {
    let stop = Arc::clone(stop);
    let failed = move |error| stop.request(Outcome::Failed(error));
    Arc::new(Mutex::new(DeviceEvents::new(changes, config.on_error, slots, failed)))
}

/// Restricts the main thread, and the threads that it starts, to what a running guest needs.
fn restrict_threads(resources: &Resources, config: &Config) -> Result<(), Error> {
    vcpu::prepare_kicks()?;
    landlock::restrict(Thread::Main, config.control.as_deref())?;
    resources.filters.main.install()
}

/// Adds the counts of a life to `stats`.
fn count(kvm_host: &KvmHost, functions: &Functions, stats: &Stats) {
    let calls = kvm_host.calls().values();
    calls.for_each(|(call, count)| stats.kvm_ioctls.add(call, count));
    functions.count(&stats.devices.functions);
}

/// The outcome. `stop` has no other owner any more.
fn outcome_of(stop: Arc<Stop>) -> Result<Outcome, Error> {
    match Arc::into_inner(stop).and_then(Stop::into_outcome) {
        Some(Outcome::Failed(error)) => Err(error),
        Some(outcome) => Ok(outcome),
        None => {
            Err(Error::Vcpu("the VMM stopped without an outcome; this is a bug of the VMM".into()))
        }
    }
}
