//! Resources that outlive a reboot of the guest: the open devices, and RAM with its DMA mappings.
//!
//! Each life of the guest has its own [`Vm`], created like the first. So vCPUs, interrupt
//! controllers and functions start in their power-on state without a list of state to reset.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_ioctls::Kvm;
use resources::{AddressRange, Layout};
use vfio_passthrough::DmaSpace;
use vfio_passthrough::backend::sysfs::Sysfs;
use vfio_passthrough::counters::VfioCalls;
use vfio_passthrough::dma::{Mapping, allow_locked_memory};

use super::control::{Configuration, DeviceInfo};
use super::stats::Stats;
use super::vm::Vm;
use crate::config::{Config, Memory, Seccomp, Thread};
use crate::error::Error;
use crate::guest::arch::{self, Kernel, Supported};
use crate::guest::layout::{self, Needs};
use crate::guest::memory::Ram;
use crate::guest::vcpus;
use crate::host::files::Files;
use crate::host::interrupts::Interrupts;
use crate::host::kvm;
use crate::host::limits::{FileLimit, RunningLimits};
use crate::host::passed_fds::PassedFds;
use crate::host::seccomp::Filter;
use crate::passthrough::addresses::addresses;
use crate::passthrough::assigned::Assigned;
use crate::passthrough::devices::{Devices, Requested};
use crate::passthrough::functions::Functions;
use crate::passthrough::mapping;
use crate::passthrough::side_by_side::meanwhile;

/// Resources of the host that the guest keeps across reboots.
pub(crate) struct Resources {
    kvm: Kvm,
    /// What KVM supports of a CPU.
    pub(crate) supported: Supported,
    /// The assigned devices.
    pub(crate) assigned: Arc<Assigned>,
    /// The guest's physical layout.
    pub(crate) layout: Layout,
    pub(crate) ram: Ram,
    /// The kernel of the first life, if it is loaded already.
    kernel: Mutex<Option<Result<Kernel, Error>>>,
    /// Kernel and initramfs.
    pub(crate) files: Files,
    /// The seccomp filters of the threads.
    pub(crate) filters: Filters,
    /// The host's interrupt counts, if the user can see counters.
    pub(crate) interrupts: Arc<Interrupts>,
}

/// The filters of the main thread and the vCPU threads.
pub(crate) struct Filters {
    pub(crate) main: Filter,
    pub(crate) vcpu: Arc<Filter>,
}

impl Filters {
    fn new(seccomp: &Seccomp) -> Result<Self, Error> {
        let vcpu = Arc::new(Filter::new(seccomp, Thread::Vcpu)?);
        Ok(Self { main: Filter::new(seccomp, Thread::Main)?, vcpu })
    }
}

/// RAM that is made while the devices are opened, with the kernel in it. Its ranges assume that no
/// BAR and no limit of the IOMMU that is not known yet is in the way.
struct Prepared {
    ranges: Vec<AddressRange>,
    ram: Ram,
    kernel: Result<Kernel, Error>,
    /// `None` if it could not be mapped yet.
    mappings: Option<Vec<Mapping>>,
}

impl Prepared {
    /// Makes RAM and populates it, loads the kernel, and maps the RAM by `dma`. `None` if the plan
    /// fails: the final plan then reports the error.
    fn make(
        needs: &Needs<'_>,
        files: &Files,
        dma: Option<&DmaSpace>,
    ) -> Result<Option<Self>, Error> {
        let apertures = dma.and_then(|dma| mapping::apertures(dma).ok());
        let Ok(layout) = (Needs { apertures: apertures.as_deref(), ..*needs }).plan() else {
            return Ok(None);
        };
        let ram = Ram::of(&layout.ram, needs.memory)?;
        let populating = ram.populate();
        let kernel = Kernel::load(&files.kernel, ram.memory(), &layout);
        populating.wait();
        // If it cannot be mapped, this is tried again when the devices are open.
        let mappings = dma.and_then(|dma| mapping::map_at_start(dma, &ram).ok());
        Ok(Some(Self { ranges: layout.ram, ram, kernel, mappings }))
    }
}

impl Resources {
    /// Opens KVM and the devices, lays out the guest, and creates the VM of its first life.
    pub(crate) fn open(
        config: &Config,
        (mut passed, files_limit): (PassedFds, FileLimit),
        stats: &Stats,
    ) -> Result<(Self, Vm), Error> {
        allow_locked(config)?;
        let kvm = kvm::open_source(&config.kvm, &mut passed)?;
        vcpus::check_count(&kvm, config.cpus)?;
        // Report a wrong path now, before the devices are reset and RAM is populated.
        let files = Files::open(config, &mut passed)?;
        let filters = Filters::new(&config.seccomp)?;
        let supported = arch::supported(&kvm)?;
        let vm = Vm::new(&kvm, &stats.kvm_ioctls)?;
        stats.phase("kvm");
        let addresses = addresses(&config.vfio, &passed)?;
        let reserved = layout::reserved(&Sysfs::default(), addresses.iter().copied());
        let needs = Needs::new(config, arch::reach(&supported), &reserved);
        let requested = Requested::prepare(config, &addresses, passed)?;
        let (devices, prepared) = open_devices(requested, &needs, &files)?;
        // After an error the functions end before the devices are closed.
        let mut vm = vm;
        if let Some(devices) = &devices {
            devices.link(&vm.kvm_host)?;
            vm.functions = devices.functions(&vm.kvm_host)?;
        }
        files_limit.check(config.cpus, vm.functions.vectors())?;
        stats.phase("vfio");
        let layout = plan(needs, devices.as_ref(), &vm.functions)?;
        kvm::check_slots(vm.slots, layout.ram.len())?;
        let (ram, kernel, mappings) = ram_for(prepared, &layout, config.memory, stats)?;
        let mappings = match (mappings, &devices) {
            (Some(mappings), _) => mappings,
            (None, Some(devices)) => mapping::map_at_start(devices.dma(), &ram)?,
            (None, None) => Vec::new(),
        };
        let limits = config.control.as_ref().map(|_| RunningLimits::open(config.cpus));
        let limits = limits.unwrap_or_default();
        let assigned = Arc::new(Assigned::new(devices, mappings, &ram, limits));
        stats.phase("map");
        let has_counters = config.stats.is_some() || config.control.is_some();
        let interrupts = Arc::new(has_counters.then(Interrupts::open).unwrap_or_default());
        let kernel = Mutex::new(kernel);
        let resources =
            Self { kvm, supported, assigned, layout, ram, kernel, files, filters, interrupts };
        Ok((resources, vm))
    }

    /// The kernel, in RAM. The first life may find it loaded.
    pub(crate) fn kernel(&self, is_first: bool) -> Result<Kernel, Error> {
        let loaded = self.kernel.lock().unwrap_or_else(PoisonError::into_inner).take();
        let load = if is_first { Kernel::load } else { Kernel::load_again };
        loaded.unwrap_or_else(|| load(&self.files.kernel, self.ram.memory(), &self.layout))
    }

    /// A VM for another life of the guest. The devices were reset at the end of the previous life.
    pub(crate) fn next_vm(&self, stats: &Stats) -> Result<Vm, Error> {
        stats.reboots.add_one();
        let mut vm = Vm::new(&self.kvm, &stats.kvm_ioctls)?;
        self.assigned.link(&vm.kvm_host)?;
        vm.functions = self.assigned.functions(&vm.kvm_host)?;
        vm.is_first = false;
        Ok(vm)
    }

    /// Closes the devices, which the kernel resets meanwhile (100 ms), and at the same time unmaps
    /// RAM and frees it (100 ms for each GiB), and destroys the VM (40 ms). Call it when the
    /// functions have ended without an error: no device does DMA any more, because bus mastering was read back as off, or the
    /// device was reset. RAM is freed only after the kernel has unmapped it, so that not even a
    /// device that ignored that could reach it.
    pub(crate) fn close(self) {
        let Self { assigned, ram, .. } = self;
        // The guest's life, which also had it, has ended.
        if let Some(assigned) = Arc::into_inner(assigned) {
            assigned.close(ram);
        }
    }

    /// The guest's configuration.
    pub(crate) fn configuration(&self, config: &Config, vm: &Vm) -> Configuration {
        Configuration::new(
            config,
            self.assigned.iommu(),
            vm.functions.iter().map(|own| DeviceInfo::of(&own)).collect(),
        )
    }

    /// Adds the interface for the devices and the counts of VFIO calls to `stats`.
    pub(crate) fn count(&self, stats: &Stats) {
        // The last device may have left.
        self.assigned.iommu().iter().for_each(|iommu| stats.iommu.set(iommu));
        self.assigned.calls().iter().for_each(|calls| count_calls(calls, stats));
    }
}

/// Devices lock all of RAM. If the first one comes later, it is refused then if the limit is too low.
fn allow_locked(config: &Config) -> Result<(), Error> {
    let allow = || allow_locked_memory(config.memory.bytes());
    match (config.vfio.is_empty(), &config.control) {
        (false, _) => Ok(allow()?),
        (true, Some(_)) => {
            allow().unwrap_or_else(|error| log::info!("without devices for now: {error}"));
            Ok(())
        }
        (true, None) => Ok(()),
    }
}

/// Adds the counts of VFIO calls to `stats`.
pub(crate) fn count_calls(calls: &VfioCalls, stats: &Stats) {
    let calls = calls.values();
    calls.for_each(|(call, count)| stats.vfio_ioctls.add(call, count));
}

fn plan(
    needs: Needs<'_>,
    devices: Option<&Devices>,
    functions: &Functions,
) -> Result<Layout, Error> {
    let dma = devices.map(Devices::dma);
    let apertures = dma.map(mapping::apertures).transpose()?;
    let bars = functions.bars();
    let layout = Needs { apertures: apertures.as_deref(), bars: &bars, ..needs }.plan()?;
    log::info!("guest physical layout:\n{layout}");
    Ok(layout)
}

/// Opens the devices, and meanwhile prepares RAM.
fn open_devices(
    requested: Option<Requested<'_>>,
    needs: &Needs<'_>,
    files: &Files,
) -> Result<(Option<Devices>, Option<Prepared>), Error> {
    // Without devices nothing pins RAM, and the kernel allocates pages at the guest's first touch,
    // unless the user requested otherwise.
    let prefault = needs.memory.prefault.unwrap_or(requested.is_some());
    let dma = requested.as_ref().and_then(Requested::dma);
    // A start that fails anyway does not wait for RAM.
    let goes_on = requested.as_ref().is_none_or(Requested::is_complete);
    let prepare = || match prefault && goes_on {
        true => Prepared::make(needs, files, dma.as_ref()),
        false => Ok(None),
    };
    let Some(requested) = requested else {
        return Ok((None, prepare()?));
    };
    let (waits, begun) = channel();
    let here = || {
        // An error means that all devices are being opened.
        let _ = begun.recv();
        prepare()
    };
    let (devices, prepared) = meanwhile(move || requested.open(waits), here);
    let prepared = prepared?;
    Ok((devices.transpose()?, prepared))
}

/// RAM, the kernel if it is loaded, and the mappings of RAM if it is mapped.
type Mapped = (Ram, Option<Result<Kernel, Error>>, Option<Vec<Mapping>>);

/// The prepared RAM if it matches `layout`, otherwise new RAM.
fn ram_for(
    prepared: Option<Prepared>,
    layout: &Layout,
    memory: Memory,
    stats: &Stats,
) -> Result<Mapped, Error> {
    let found = match prepared.filter(|prepared| prepared.ranges == layout.ram) {
        Some(Prepared { ram, kernel, mappings, .. }) => (ram, Some(kernel), mappings),
        None => (Ram::of(&layout.ram, memory)?, None, None),
    };
    stats.phase("populate");
    found.0.regions().iter().for_each(|_| stats.ram_regions.add_one());
    Ok(found)
}
