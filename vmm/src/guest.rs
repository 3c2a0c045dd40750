//! A guest from its beginning to its end: planned, loaded, run, booted again, and taken apart.
//!
//! What outlives a reboot is in [`Host`]: the opened devices, and RAM with its DMA mappings. Each life of the
//! guest has a [`Vm`] of its own, made in the same way as the first, so that CPUs, interrupt controllers and
//! functions are as after power-on without a list of what to put back.

use std::sync::{Arc, Mutex, PoisonError};

use devices::{HostBridge, PciRoot};
use kvm_bindings::CpuId;
use kvm_ioctls::{Kvm, VmFd};
use nix::sys::signalfd::SignalFd;
use resources::{AddressRange, CpuReach, Layout, Reserved};
use serde_json::Value;
use vfio_passthrough::backend::sysfs::Sysfs;
use vfio_passthrough::dma::{Mapping, allow_locked_memory};
use vfio_passthrough::kvm::KvmHost;

use crate::boot::{Boot, Entry, Kernel, Platform};
use crate::console::RawTerminal;
use crate::control::{Configuration, Control, Life};
use crate::events::{DeviceEvents, FirstRoutes, MainLoop};
use crate::files::Files;
use crate::handed::Handed;
use crate::interrupts::Interrupts;
use crate::layout::Needs;
use crate::machine::{self, Buses, Console};
use crate::memory::{self, Populating, Ram};
use crate::posted::Posted;
use crate::seccomp::{Filter, Thread};
use crate::stats::Stats;
use crate::stop::{Outcome, Stop};
use crate::vcpu::{self, Gate, Vcpu, Vcpus, cpuid, registers};
use crate::vfio::{Devices, Functions, GuestFunction};
use crate::{Args, Error, Memory, kvm, landlock, layout, vfio};

/// GSIs for message-signalled interrupts: above the IOAPIC's pins, up to KVM's limit (`KVM_MAX_IRQ_ROUTES`).
const MSI_GSIS: std::ops::Range<u32> = 24..4096;

/// What a guest has of the host for as long as it reboots.
pub struct Host {
    kvm: Kvm,
    supported: CpuId,
    devices: Option<Devices>,
    layout: Layout,
    ram: Ram,
    files: Files,
    filters: Filters,
    _mappings: Vec<Mapping>,
    interrupts: Arc<Interrupts>,
}

/// What the main thread, and CPUs' threads, may do once a guest runs.
struct Filters {
    main: Filter,
    vcpu: Arc<Filter>,
}

/// RAM that is made ready while the devices are opened, where the guest will have it unless the IOMMU
/// objects.
struct Prepared {
    ranges: Vec<AddressRange>,
    ram: Ram,
    populating: Populating,
}

impl Prepared {
    /// None where there is no plan: the one that is made when all is known says why.
    fn begin(memory: Memory, cpu: CpuReach, reserved: &[Reserved]) -> Result<Option<Self>, Error> {
        let needs = Needs { memory, cpu, apertures: None, reserved, bars: &[] };
        let Ok(Layout { ram: ranges, .. }) = needs.plan() else {
            return Ok(None);
        };
        let ram = Ram::of(&ranges, memory)?;
        Ok(Some(Self { populating: ram.populate(), ranges, ram }))
    }

    /// The RAM, if it is what the layout came to.
    fn take(self, layout: &Layout) -> Option<Ram> {
        self.populating.wait();
        (self.ranges == layout.ram).then_some(self.ram)
    }
}

impl Host {
    /// Opens KVM and the devices, and lays out the guest; with it comes the VM of its first life.
    pub fn open(args: &Args, mut handed: Handed, stats: &Stats) -> Result<(Self, Vm), Error> {
        memory::check_host(args.memory)?;
        if !args.vfio.is_empty() {
            allow_locked_memory(args.memory.bytes())?;
            memory::shortage(args.memory).inspect(|text| log::warn!("{text}"));
        }
        let kvm = kvm::given(&args.kvm, &mut handed)?;
        machine::check_cpus(&kvm, args)?;
        // A wrong path is told at once, not after the devices were reset and RAM was populated.
        let files = Files::open(args, &mut handed)?;
        let filters = Filters {
            main: args.seccomp.filter(Thread::Main)?,
            vcpu: Arc::new(args.seccomp.filter(Thread::Vcpu)?),
        };
        let supported = cpuid::supported(&kvm)?;
        let mut vm = Vm::new(&kvm, stats)?;
        stats.phase("kvm");
        // Without devices RAM is not pinned, and a page is had when the guest touches it, unless told.
        let addresses = vfio::addresses(&args.vfio, &handed)?;
        let reserved = layout::reserved(&Sysfs::default(), addresses.iter().copied());
        let prepare = || Prepared::begin(args.memory, cpuid::reach(&supported), &reserved);
        let prefault = args.memory.prefault.unwrap_or(!args.vfio.is_empty());
        let prepared = prefault.then(prepare).transpose()?.flatten();
        // The kernel wants a group's VM to be known before its devices are opened.
        let devices = Devices::open(&args.vfio, addresses, handed, &vm.kvm_host)?;
        vm.take_functions(devices.as_ref())?;
        stats.phase("vfio");
        let layout = plan(args, &supported, devices.as_ref(), &reserved, &vm.functions)?;
        let prepared = prepared.and_then(|prepared| prepared.take(&layout));
        let ram = prepared.map_or_else(|| Ram::of(&layout.ram, args.memory), Ok)?;
        stats.phase("populate");
        ram.regions().iter().for_each(|_| stats.ram_regions.add_one());
        let mappings = devices.as_ref().map(|devices| devices.map(&ram));
        let _mappings = mappings.transpose()?.unwrap_or_default();
        stats.phase("map");
        let host = Self {
            kvm,
            supported,
            devices,
            layout,
            ram,
            files,
            filters,
            _mappings,
            interrupts: Arc::new(Interrupts::open()),
        };
        Ok((host, vm))
    }

    /// A VM for another life of the guest. The devices were reset when the last one ended.
    pub fn another(&self, stats: &Stats) -> Result<Vm, Error> {
        stats.reboots.add_one();
        let mut vm = Vm::new(&self.kvm, stats)?;
        if let Some(devices) = &self.devices {
            devices.link(&vm.kvm_host)?;
        }
        vm.take_functions(self.devices.as_ref())?;
        vm.is_first = false;
        Ok(vm)
    }

    /// What the guest has, with the functions of one of its lives.
    pub fn configuration(&self, args: &Args, vm: &Vm) -> Configuration {
        Configuration::new(args, vm.functions.iter().map(vfio::device_info).collect())
    }

    /// Adds what was counted here to `stats`.
    pub fn count(&self, stats: &Stats) {
        if let Some(devices) = &self.devices {
            vfio::count(&devices.calls(), stats);
        }
    }
}

fn plan(
    args: &Args,
    supported: &CpuId,
    devices: Option<&Devices>,
    reserved: &[Reserved],
    functions: &Functions,
) -> Result<Layout, Error> {
    let apertures = devices.map(Devices::apertures).transpose()?;
    let needs = Needs {
        memory: args.memory,
        cpu: cpuid::reach(supported),
        apertures: apertures.as_deref(),
        reserved,
        bars: &functions.bars(),
    };
    let layout = needs.plan()?;
    log::info!("guest physical layout:\n{layout}");
    Ok(layout)
}

fn memory_slots(kvm: &Kvm) -> u32 {
    u32::try_from(kvm.get_nr_memslots()).unwrap_or(u32::MAX)
}

/// One life of the guest.
pub struct Vm {
    fd: Arc<VmFd>,
    kvm_host: Arc<KvmHost>,
    posted: Arc<Posted>,
    functions: Functions,
    is_first: bool,
}

impl Vm {
    fn new(kvm: &Kvm, stats: &Stats) -> Result<Self, Error> {
        let fd = kvm::create_vm(kvm, &stats.kvm_ioctls)?;
        let kvm_host = Arc::new(KvmHost::new(Arc::clone(&fd), 0..memory_slots(kvm), MSI_GSIS));
        Ok(Self {
            posted: Arc::default(),
            fd,
            kvm_host,
            functions: Functions::default(),
            is_first: true,
        })
    }

    fn take_functions(&mut self, devices: Option<&Devices>) -> Result<(), Error> {
        if let Some(devices) = devices {
            self.functions = devices.functions(&self.kvm_host)?;
        }
        Ok(())
    }

    /// Boots the guest and runs it to its end, whoever brings it about.
    pub fn run(
        self,
        host: &Host,
        args: &Args,
        asked: (&Arc<SignalFd>, &Arc<Control>),
        stats: &Arc<Stats>,
    ) -> Result<Outcome, Error> {
        let (_, control) = asked;
        let (pci, functions) = self.pci_root(stats)?;
        let entry = self.load(host, args)?;
        stats.phase("load");
        let slots = host.ram.place(self.kvm_host.memory().as_ref())?;
        let stop = Arc::new(Stop::new()?);
        let (vcpus, shared, console) = self.assemble(host, args, (pci, entry), &stop, stats)?;
        let mut main_loop = MainLoop::new(&stop, asked, &console.pending, stats)?;
        let terminal = RawTerminal::enter();
        main_loop.add(Arc::new(Mutex::new(console.keyboard)));
        if host.devices.is_some() {
            main_loop.add(Arc::new(Mutex::new(self.first_routes()?)));
        }
        let events = DeviceEvents::new(functions, args.on_error, &stop);
        let events = Arc::new(Mutex::new(events));
        main_loop.add(events.clone());
        if self.is_first {
            vcpu::prepare_kicks()?;
            landlock::restrict(Thread::Main, args.control.as_deref())?;
            host.filters.main.install()?;
        }
        stats.phase("set_up");

        control.begin(Life {
            vcpus: Vcpus::start(vcpus, &shared)?,
            stop: Arc::clone(&stop),
            power_button: console.power_button,
            counters: self.counters(host, stats),
        });
        let looped = main_loop.run();
        stats.phase("guest");
        // CPUs first, so that nothing is programmed any more; then the devices; then the memory they reach.
        control.end();
        host.interrupts.count(&self.functions.addresses(), stats);
        events.lock().unwrap_or_else(PoisonError::into_inner).catch_up();
        let shut_down = self.functions.shutdown();
        drop((shared, main_loop, events, slots, terminal));
        count(&self.kvm_host, &self.functions, stats);
        stats.phase("end");
        looped.and(outcome_of(stop)).and_then(|outcome| shut_down.map(|()| outcome))
    }

    fn first_routes(&self) -> Result<FirstRoutes, Error> {
        let deferred = self.kvm_host.router().defer_routes();
        deferred.map(FirstRoutes).map_err(Error::system("an epoll set for interrupts"))
    }

    /// Places the BARs, and loads kernel, initramfs and boot data into RAM.
    fn load(&self, host: &Host, args: &Args) -> Result<Entry, Error> {
        self.functions.place_bars(&host.layout);
        let load = if self.is_first { Kernel::load } else { Kernel::load_again };
        let kernel = load(&host.files.kernel, host.ram.memory(), &host.layout)?;
        let platform = Platform {
            cpus: args.cpus,
            slots: self.functions.iter().map(|(slot, _)| *slot).collect(),
        };
        let boot = Boot {
            memory: host.ram.memory(),
            layout: &host.layout,
            platform: &platform,
            initrd: host.files.initrd.as_ref(),
            pci_ports: args.pci_ports,
            cmdline: &args.cmdline,
        };
        boot.prepare(&kernel)
    }

    /// A bus with the host bridge at slot 0 and the assigned functions after it, and these.
    fn pci_root(&self, stats: &Stats) -> Result<(PciRoot, Vec<Arc<GuestFunction>>), Error> {
        let mut root = PciRoot::new();
        root.insert(0, Arc::new(HostBridge))?;
        let mut functions = Vec::new();
        for (slot, function) in self.functions.iter() {
            let function = GuestFunction::new(function, self.posted.clone(), stats);
            let function = Arc::new(function);
            root.insert(*slot, function.clone())?;
            functions.push(function);
        }
        Ok((root, functions))
    }

    fn assemble(
        &self,
        host: &Host,
        args: &Args,
        (pci, entry): (PciRoot, Entry),
        stop: &Arc<Stop>,
        stats: &Arc<Stats>,
    ) -> Result<(Vec<Vcpu>, Arc<vcpu::Machine>, Console), Error> {
        let mut buses = Buses::default();
        let console = buses.add_console(&self.fd, stop, stats)?;
        buses.add_power(stop, stats)?;
        buses.add_pci(pci, &host.layout, args.pci_ports, stats)?;
        let vcpus = machine::create_vcpus(&self.fd, &host.supported, args.cpus, stats)?;
        if let Some(first) = vcpus.first() {
            registers::set_up(&first.fd, host.ram.memory(), entry, &stats.kvm_ioctls)?;
            self.posted.open(&self.fd, &first.fd)?;
        }
        let shared = vcpu::Machine {
            buses: buses.into_manager(),
            posted: Arc::clone(&self.posted),
            stats: Arc::clone(stats),
            stop: Arc::clone(stop),
            gate: Gate::default(),
            filter: Arc::clone(&host.filters.vcpu),
        };
        Ok((vcpus, Arc::new(shared), console))
    }

    /// What is counted, with what this life adds to it at its end.
    fn counters(&self, host: &Host, stats: &Arc<Stats>) -> Box<dyn Fn() -> Value + Send> {
        let (stats, kvm_host) = (Arc::clone(stats), Arc::clone(&self.kvm_host));
        let (functions, calls) =
            (self.functions.clone(), host.devices.as_ref().map(Devices::calls));
        let (interrupts, addresses) = (Arc::clone(&host.interrupts), functions.addresses());
        Box::new(move || {
            let live = stats.as_ref().clone();
            count(&kvm_host, &functions, &live);
            interrupts.count(&addresses, &live);
            calls.iter().for_each(|calls| vfio::count(calls, &live));
            live.json()
        })
    }
}

/// Adds what was counted in a life to `stats`.
fn count(kvm_host: &KvmHost, functions: &Functions, stats: &Stats) {
    let calls = kvm_host.calls().values();
    calls.for_each(|(call, count)| stats.kvm_ioctls.add(call, count));
    functions.count(stats);
}

/// All others who held the stop are gone by now.
fn outcome_of(stop: Arc<Stop>) -> Result<Outcome, Error> {
    match Arc::into_inner(stop).and_then(Stop::into_outcome) {
        Some(Outcome::Failed(error)) => Err(error),
        Some(outcome) => Ok(outcome),
        None => Err(Error::Vcpu("the VMM stopped and nobody said why".into())),
    }
}
