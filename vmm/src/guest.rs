//! A guest from its beginning to its end: planned, loaded, run, and taken apart.

use std::fs::File;
use std::sync::{Arc, Mutex};

use devices::{HostBridge, PciRoot};
use kvm_bindings::CpuId;
use kvm_ioctls::{Kvm, VmFd};
use nix::sys::signalfd::SignalFd;
use resources::{AddressRange, IoReach, Layout, LayoutRequest};
use vfio_passthrough::dma::{Mapping, check_locked_memory};
use vfio_passthrough::host::MemorySlot;
use vfio_passthrough::kvm::KvmHost;

use crate::boot::{Boot, Entry, Kernel, Platform};
use crate::console::RawTerminal;
use crate::events::MainLoop;
use crate::machine::{self, Buses, Console};
use crate::memory::{self, Populating, Ram};
use crate::stats::Stats;
use crate::stop::{Outcome, Stop};
use crate::vcpu::{self, RunningVcpu, Vcpu, cpuid, registers};
use crate::vfio::{Assigned, GuestFunction};
use crate::{Args, Error, kvm};

/// GSIs for message-signalled interrupts: above the IOAPIC's pins, up to KVM's limit (`KVM_MAX_IRQ_ROUTES`).
const MSI_GSIS: std::ops::Range<u32> = 24..4096;

/// What the guest is made from on the host's side: KVM, a VM, and the assigned devices.
pub struct Host {
    supported: CpuId,
    vm: Arc<VmFd>,
    kvm_host: KvmHost,
    assigned: Option<Assigned>,
    prepared: Option<Prepared>,
}

/// RAM that is made ready while the devices are opened, where the guest will have it unless the IOMMU
/// objects.
struct Prepared {
    ranges: Vec<AddressRange>,
    ram: Ram,
    populating: Populating,
}

impl Prepared {
    fn begin(ram: u64, address_bits: u8) -> Result<Self, Error> {
        let reach = IoReach::Unrestricted;
        let ranges = Layout::plan(&LayoutRequest {
            ram,
            address_bits,
            reach,
            reserved: &[],
            bars: &[],
        })?
        .ram;
        let ram = Ram::new(&ranges)?;
        Ok(Self {
            populating: ram.populate(),
            ranges,
            ram,
        })
    }

    /// The RAM, if it is what the layout came to.
    fn take(self, layout: &Layout) -> Option<Ram> {
        self.populating.wait();
        (self.ranges == layout.ram).then_some(self.ram)
    }
}

impl Host {
    /// Opens KVM and the devices; nothing of the guest is there yet.
    pub fn open(args: &Args, stats: &Stats) -> Result<Self, Error> {
        memory::check_host(args.memory)?;
        if !args.vfio.is_empty() {
            check_locked_memory(args.memory.bytes())?;
        }
        let kvm = kvm::open()?;
        machine::check_cpus(&kvm, args)?;
        check_files(args)?;
        let supported = cpuid::supported(&kvm)?;
        let vm = kvm::create_vm(&kvm, &stats.kvm_ioctls)?;
        let kvm_host = KvmHost::new(Arc::clone(&vm), 0..memory_slots(&kvm), MSI_GSIS);
        stats.phase("kvm");
        // Without devices RAM is not pinned, and a page is had when the guest touches it.
        let prepare = || Prepared::begin(args.memory.bytes(), cpuid::address_bits(&supported));
        let prepared = (!args.vfio.is_empty()).then(prepare).transpose()?;
        let assigned = Assigned::open(&args.vfio, &kvm_host)?;
        stats.phase("vfio");
        Ok(Self {
            supported,
            vm,
            kvm_host,
            assigned,
            prepared,
        })
    }

    fn plan(&self, args: &Args) -> Result<Layout, Error> {
        let apertures = self.assigned.as_ref().map(Assigned::apertures).transpose()?;
        let layout = Layout::plan(&LayoutRequest {
            ram: args.memory.bytes(),
            address_bits: cpuid::address_bits(&self.supported),
            reach: apertures
                .as_deref()
                .map_or(IoReach::Unrestricted, IoReach::Apertures),
            reserved: &[],
            bars: &self.assigned.as_ref().map_or_else(Vec::new, Assigned::bars),
        })?;
        log::info!("guest physical layout:\n{layout}");
        Ok(layout)
    }

    /// Adds what was counted here to `stats`.
    pub fn count(&self, stats: &Stats) {
        self.kvm_host
            .calls()
            .values()
            .for_each(|(call, count)| stats.kvm_ioctls.add(call, count));
        if let Some(assigned) = &self.assigned {
            assigned.count(stats);
        }
    }
}

/// A wrong path is told at once, not after the devices were reset and RAM was populated.
fn check_files(args: &Args) -> Result<(), Error> {
    let files = [("kernel", Some(&args.kernel)), ("initrd", args.initrd.as_ref())];
    let given = files.into_iter().filter_map(|(what, path)| Some((what, path?)));
    given.into_iter().try_for_each(|(what, path)| {
        let failed = |source| Error::File {
            what,
            path: path.clone(),
            source,
        };
        File::open(path).map(drop).map_err(failed)
    })
}

fn memory_slots(kvm: &Kvm) -> u32 {
    u32::try_from(kvm.get_nr_memslots()).unwrap_or(u32::MAX)
}

/// A guest that is loaded and has not begun.
pub struct Guest {
    layout: Layout,
    ram: Ram,
    pci: PciRoot,
    entry: Entry,
    cpus: u8,
    pci_ports: bool,
}

impl Guest {
    /// Plans the guest and loads kernel, initramfs and boot data into its RAM.
    pub fn load(host: &mut Host, args: &Args, stats: &Stats) -> Result<Self, Error> {
        let layout = host.plan(args)?;
        let prepared = host.prepared.take().and_then(|prepared| prepared.take(&layout));
        let ram = prepared.map_or_else(|| Ram::new(&layout.ram), Ok)?;
        stats.phase("populate");
        ram.regions().iter().for_each(|_| stats.ram_regions.add_one());
        let (pci, slots) = pci_root(host.assigned.as_ref())?;
        let kernel = Kernel::load(&args.kernel, ram.memory(), &layout)?;
        let platform = Platform {
            cpus: args.cpus,
            slots,
        };
        let boot = Boot {
            memory: ram.memory(),
            layout: &layout,
            platform: &platform,
            initrd: args.initrd.as_deref(),
            pci_ports: args.pci_ports,
            cmdline: &args.cmdline,
        };
        let entry = boot.prepare(&kernel)?;
        stats.phase("load");
        Ok(Self {
            layout,
            ram,
            pci,
            entry,
            cpus: args.cpus,
            pci_ports: args.pci_ports,
        })
    }

    /// Runs the guest to its end, whoever brings it about.
    pub fn run(self, host: &Host, signals: SignalFd, stats: &Arc<Stats>) -> Result<Outcome, Error> {
        let stop = Arc::new(Stop::new()?);
        let placed = self.place(host, stats)?;
        let (vcpus, shared, console) = self.assemble(host, &stop, stats)?;
        let mut main_loop = MainLoop::new(&stop, signals, &console.pending, stats)?;
        let terminal = RawTerminal::enter();
        main_loop.add(Arc::new(Mutex::new(console.keyboard)));
        vcpu::prepare_kicks()?;
        stats.phase("set_up");

        let start = |vcpu: Vcpu| vcpu.start(Arc::clone(&shared));
        let running = vcpus
            .into_iter()
            .map(start)
            .collect::<Result<Vec<RunningVcpu>, _>>()?;
        let looped = main_loop.run();
        stats.phase("guest");
        // CPUs first, so that nothing is programmed any more; then the devices; then the memory they reach.
        drop(running);
        let shut_down = host.assigned.as_ref().map_or(Ok(()), Assigned::shutdown);
        drop((shared, main_loop, placed, terminal));
        stats.phase("end");
        looped
            .and(outcome_of(stop))
            .and_then(|outcome| shut_down.map(|()| outcome))
    }

    /// Gives RAM to the guest's CPUs and to its devices, and each BAR its place.
    fn place(&self, host: &Host, stats: &Stats) -> Result<Placed, Error> {
        let slots = self.ram.place(host.kvm_host.memory().as_ref())?;
        let mappings = match &host.assigned {
            Some(assigned) => {
                assigned.place_bars(&self.layout);
                assigned.map(&self.ram)?
            }
            None => Vec::new(),
        };
        stats.phase("map");
        Ok(Placed {
            _mappings: mappings,
            _slots: slots,
        })
    }

    fn assemble(
        self,
        host: &Host,
        stop: &Arc<Stop>,
        stats: &Arc<Stats>,
    ) -> Result<(Vec<Vcpu>, Arc<vcpu::Machine>, Console), Error> {
        let mut buses = Buses::default();
        let console = buses.add_console(&host.vm, stop, stats)?;
        buses.add_power(stop, stats)?;
        buses.add_pci(self.pci, &self.layout, self.pci_ports, stats)?;
        let vcpus = machine::create_vcpus(&host.vm, &host.supported, self.cpus, stats)?;
        if let Some(first) = vcpus.first() {
            registers::set_up(&first.fd, self.ram.memory(), self.entry, &stats.kvm_ioctls)?;
        }
        let shared = vcpu::Machine {
            buses: buses.into_manager(),
            stats: Arc::clone(stats),
            stop: Arc::clone(stop),
        };
        Ok((vcpus, Arc::new(shared), console))
    }
}

/// RAM where CPUs and devices see it, for as long as this lives.
struct Placed {
    _mappings: Vec<Mapping>,
    _slots: Vec<Box<dyn MemorySlot>>,
}

/// A bus with the host bridge at slot 0 and the assigned functions after it, and the slots of the latter.
fn pci_root(assigned: Option<&Assigned>) -> Result<(PciRoot, Vec<u8>), Error> {
    let mut root = PciRoot::new();
    root.insert(0, Arc::new(HostBridge))?;
    let mut slots = Vec::new();
    for (slot, function) in assigned.into_iter().flat_map(Assigned::functions) {
        root.insert(*slot, Arc::new(GuestFunction(Arc::clone(function))))?;
        slots.push(*slot);
    }
    Ok((root, slots))
}

/// All others who held the stop are gone by now.
fn outcome_of(stop: Arc<Stop>) -> Result<Outcome, Error> {
    match Arc::into_inner(stop).and_then(Stop::into_outcome) {
        Some(Outcome::Failed(error)) => Err(error),
        Some(outcome) => Ok(outcome),
        None => Err(Error::Vcpu("the VMM stopped and nobody said why".into())),
    }
}
