//! Resources that outlive a reboot of the guest: the open devices, and RAM with its DMA mappings.
//!
//! Each life of the guest has its own [`Vm`], created like the first. So vCPUs, interrupt
//! controllers and functions start in their power-on state without a list of state to reset.

use std::sync::Arc;

use kvm_bindings::CpuId;
use kvm_ioctls::Kvm;
use resources::{AddressRange, Layout};
use vfio_passthrough::backend::sysfs::Sysfs;
use vfio_passthrough::counters::VfioCalls;
use vfio_passthrough::dma::allow_locked_memory;

use super::control::{Configuration, DeviceInfo};
use super::stats::Stats;
use super::vm::Vm;
use crate::config::{Config, Memory, Seccomp, Thread};
use crate::error::Error;
use crate::guest::layout::{self, Needs};
use crate::guest::memory::{Populating, Ram};
use crate::guest::{cpuid, vcpus};
use crate::host::files::Files;
use crate::host::interrupts::Interrupts;
use crate::host::limits::FileLimit;
use crate::host::passed_fds::PassedFds;
use crate::host::seccomp::Filter;
use crate::host::{kvm, memory};
use crate::passthrough::addresses::addresses;
use crate::passthrough::assigned::Assigned;
use crate::passthrough::devices::Devices;
use crate::passthrough::functions::Functions;

/// Resources of the host that the guest keeps across reboots.
pub(crate) struct Resources {
    kvm: Kvm,
    /// The CPUID that KVM supports.
    pub(crate) supported: CpuId,
    /// The assigned devices.
    pub(crate) assigned: Arc<Assigned>,
    /// The guest's physical layout.
    pub(crate) layout: Layout,
    pub(crate) ram: Ram,
    /// Kernel and initramfs.
    pub(crate) files: Files,
    /// The seccomp filters of the threads.
    pub(crate) filters: Filters,
    /// The host's interrupt counts.
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

/// RAM that is populated while the devices are opened. The ranges assume that the IOMMU imposes no
/// restrictions.
struct Prepared {
    ranges: Vec<AddressRange>,
    ram: Ram,
    populating: Populating,
}

impl Prepared {
    /// `None` if the plan fails: the final plan then reports the error.
    fn begin(needs: &Needs<'_>) -> Result<Option<Self>, Error> {
        let Ok(Layout { ram: ranges, .. }) = needs.plan() else {
            return Ok(None);
        };
        let ram = Ram::of(&ranges, needs.memory)?;
        Ok(Some(Self { populating: ram.populate(), ranges, ram }))
    }

    /// The RAM, if its ranges match the final layout.
    fn take(self, layout: &Layout) -> Option<Ram> {
        self.populating.wait();
        (self.ranges == layout.ram).then_some(self.ram)
    }
}

impl Resources {
    /// Opens KVM and the devices, lays out the guest, and creates the VM of its first life.
    pub(crate) fn open(
        config: &Config,
        (mut passed, files_limit): (PassedFds, FileLimit),
        stats: &Stats,
    ) -> Result<(Self, Vm), Error> {
        check_memory(config)?;
        let kvm = kvm::open_source(&config.kvm, &mut passed)?;
        vcpus::check_count(&kvm, config.cpus)?;
        // Report a wrong path now, before the devices are reset and RAM is populated.
        let files = Files::open(config, &mut passed)?;
        let filters = Filters::new(&config.seccomp)?;
        let supported = cpuid::supported(&kvm)?;
        let mut vm = Vm::new(&kvm, &stats.kvm_ioctls)?;
        stats.phase("kvm");
        let addresses = addresses(&config.vfio, &passed)?;
        let reserved = layout::reserved(&Sysfs::default(), addresses.iter().copied());
        let needs = Needs {
            memory: config.memory,
            cpu: cpuid::reach(&supported),
            apertures: None,
            reserved: &reserved,
            bars: &[],
        };
        // Without devices nothing pins RAM, and the kernel allocates pages at the guest's first
        // touch, unless the user requested otherwise.
        let prefault = config.memory.prefault.unwrap_or(!config.vfio.is_empty());
        let prepared = prefault.then(|| Prepared::begin(&needs)).transpose()?.flatten();
        // The kernel must know a group's VM before the group's devices are opened.
        let devices = Devices::open(config, &addresses, passed, &vm.kvm_host)?;
        if let Some(devices) = &devices {
            vm.functions = devices.functions(&vm.kvm_host)?;
        }
        files_limit.check(config.cpus, vm.functions.vectors())?;
        stats.phase("vfio");
        let layout = plan(needs, devices.as_ref(), &vm.functions)?;
        kvm::check_slots(&kvm, layout.ram.len())?;
        let ram = ram_for(prepared, &layout, config.memory, stats)?;
        let mappings = devices.as_ref().map(|devices| devices.map(&ram));
        let mappings = mappings.transpose()?.unwrap_or_default();
        let assigned = Arc::new(Assigned::new(devices, mappings, &ram));
        stats.phase("map");
        let interrupts = Arc::new(Interrupts::open());
        let resources = Self { kvm, supported, assigned, layout, ram, files, filters, interrupts };
        Ok((resources, vm))
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

    /// The guest's configuration.
    pub(crate) fn configuration(&self, config: &Config, vm: &Vm) -> Configuration {
        Configuration::new(
            config,
            self.assigned.iommu(),
            vm.functions.iter().map(|own| DeviceInfo::of(&own)).collect(),
        )
    }

    /// Adds the counts of VFIO calls to `stats`.
    pub(crate) fn count(&self, stats: &Stats) {
        self.assigned.calls().iter().for_each(|calls| count_calls(calls, stats));
    }
}

/// Adds the counts of VFIO calls to `stats`.
pub(crate) fn count_calls(calls: &VfioCalls, stats: &Stats) {
    let calls = calls.values();
    calls.for_each(|(call, count)| stats.vfio_ioctls.add(call, count));
}

fn check_memory(config: &Config) -> Result<(), Error> {
    if !config.vfio.is_empty() {
        allow_locked_memory(config.memory.bytes())?;
        memory::shortage(config.memory).inspect(|text| log::warn!("{text}"));
    }
    Ok(())
}

fn plan(
    needs: Needs<'_>,
    devices: Option<&Devices>,
    functions: &Functions,
) -> Result<Layout, Error> {
    let apertures = devices.map(Devices::apertures).transpose()?;
    let bars = functions.bars();
    let layout = Needs { apertures: apertures.as_deref(), bars: &bars, ..needs }.plan()?;
    log::info!("guest physical layout:\n{layout}");
    Ok(layout)
}

/// The prepared RAM if it matches `layout`, otherwise new RAM.
fn ram_for(
    prepared: Option<Prepared>,
    layout: &Layout,
    memory: Memory,
    stats: &Stats,
) -> Result<Ram, Error> {
    let prepared = prepared.and_then(|prepared| prepared.take(layout));
    let ram = prepared.map_or_else(|| Ram::of(&layout.ram, memory), Ok)?;
    stats.phase("populate");
    ram.regions().iter().for_each(|_| stats.ram_regions.add_one());
    Ok(ram)
}
