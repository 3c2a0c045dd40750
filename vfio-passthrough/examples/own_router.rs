//! A VMM with an interrupt routing table of its own, in which the library's functions have routes
//! too.
//!
//! ```console
//! # cargo run --features kvm --example own_router -- 0000:01:00.0
//! ```
//!
//! `KVM_SET_GSI_ROUTING` replaces a VM's whole table. A VMM that has routes for its own devices
//! therefore keeps the table itself ([`Table`]), and implements [`MsiRouter`] and [`MsiVectors`] on
//! it: the glue is [`Router`] and [`Vectors`]. A VMM without such a table uses `KvmHost`, and sets
//! routes of its own by `KvmRouter::set_routes`.
//!
//! The program has a route for a device of the VMM's own, and enables MSI-X of a device that is
//! bound to vfio-pci. It signals the eventfds of both, as VFIO does when a vector fires, and finds
//! both interrupts in the APIC of a CPU.
#![allow(clippy::arithmetic_side_effects, reason = "a program that overflows fails")]

use std::collections::BTreeMap;
use std::env;
use std::error::Error;
use std::fmt::Display;
use std::io;
use std::ops::Range;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vfio_passthrough::backend::Device;
use vfio_passthrough::host::{MsiMessage, MsiRouter, MsiVectors};
use vfio_passthrough::kvm::{KvmLink, KvmMemory};
use vfio_passthrough::pci::{caps, regs};
use vfio_passthrough::{
    BarIndex, IommuContext, PassthroughFunction, PciAddress, ResetPolicy, VmmServices,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The GSI of the VMM's own device, and the first one that functions get.
const OWN_GSI: u32 = 24;
const FIRST_GSI: u32 = 32;
/// The interrupts of the VMM's own device and of the assigned one, at CPU 0 (SDM 3A, 11.11).
const OWN: MsiMessage = MsiMessage { address: 0xfee0_0000, data: 0x40 };
const ASSIGNED: MsiMessage = MsiMessage { address: 0xfee0_0000, data: 0x41 };

/// What a VMM has: the routes of its VM, and the irqfds on them, by GSI.
struct Table {
    vm: Arc<VmFd>,
    routes: Mutex<BTreeMap<u32, MsiMessage>>,
    irqfds: Mutex<BTreeMap<u32, Arc<EventFd>>>,
}

impl Table {
    /// Changes routes, with one `KVM_SET_GSI_ROUTING` unless they are as before.
    fn change(&self, change: impl FnOnce(&mut BTreeMap<u32, MsiMessage>)) -> io::Result<()> {
        let mut routes = lock(&self.routes);
        let mut new = routes.clone();
        change(&mut new);
        if *routes != new {
            let entries: Vec<_> = new.iter().map(|(gsi, message)| entry(*gsi, *message)).collect();
            let table = KvmIrqRouting::from_entries(&entries).map_err(io::Error::other)?;
            self.vm.set_gsi_routing(&table).map_err(errno)?;
            *routes = new;
        }
        Ok(())
    }

    /// Attaches an irqfd to a GSI: from now on the kernel delivers what fires, and what has fired
    /// before.
    fn attach(&self, gsi: u32, eventfd: Arc<EventFd>) -> io::Result<()> {
        self.vm.register_irqfd(&eventfd, gsi).map_err(errno)?;
        lock(&self.irqfds).insert(gsi, eventfd);
        Ok(())
    }

    /// Detaches the irqfd of a GSI, if there is one.
    fn detach(&self, gsi: u32) -> io::Result<()> {
        let mut irqfds = lock(&self.irqfds);
        if let Some(eventfd) = irqfds.get(&gsi) {
            self.vm.unregister_irqfd(eventfd, gsi).map_err(errno)?;
            irqfds.remove(&gsi);
        }
        Ok(())
    }
}

// The glue begins here.

/// Gives functions GSIs of the VMM's table. A VMM with hot-plug has an allocator, to have the GSIs
/// back.
struct Router {
    table: Arc<Table>,
    next: AtomicU32,
}

impl MsiRouter for Router {
    fn allocate(&self, count: u16) -> io::Result<Box<dyn MsiVectors>> {
        let first = self.next.fetch_add(count.into(), Ordering::Relaxed);
        let gsis = first..first + u32::from(count);
        Ok(Box::new(Vectors { table: self.table.clone(), gsis, eventfds: BTreeMap::new() }))
    }
}

/// The vectors of one function: vector 0 has the first of `gsis`.
struct Vectors {
    table: Arc<Table>,
    gsis: Range<u32>,
    eventfds: BTreeMap<u16, Arc<EventFd>>,
}

impl MsiVectors for Vectors {
    fn trigger(&mut self, vector: u16) -> io::Result<Arc<EventFd>> {
        if let Some(eventfd) = self.eventfds.get(&vector) {
            return Ok(eventfd.clone());
        }
        let eventfd = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        self.eventfds.insert(vector, eventfd.clone());
        Ok(eventfd)
    }

    fn update(&mut self, changes: &[(u16, Option<MsiMessage>)]) -> io::Result<()> {
        let first = self.gsis.start;
        let gsi = |vector: u16| first + u32::from(vector);
        // An irqfd goes before its route changes. A masked vector keeps its route.
        changes.iter().try_for_each(|(vector, _)| self.table.detach(gsi(*vector)))?;
        let routed = changes.iter().filter_map(|(vector, message)| Some((*vector, (*message)?)));
        self.table.change(|routes| {
            routes.extend(routed.clone().map(|(vector, message)| (gsi(vector), message)));
        })?;
        for (vector, _) in routed {
            let eventfd = self.trigger(vector)?;
            self.table.attach(gsi(vector), eventfd)?;
        }
        Ok(())
    }
}

impl Drop for Vectors {
    fn drop(&mut self) {
        // A route must not go before its irqfd: where one stays, all routes do.
        let detached = self.gsis.clone().try_for_each(|gsi| self.table.detach(gsi));
        let unroute =
            || self.table.change(|routes| routes.retain(|gsi, _| !self.gsis.contains(gsi)));
        if let Err(error) = detached.and_then(|()| unroute()) {
            eprintln!("the routes of GSIs {:?} stay: {error}", self.gsis);
        }
    }
}

// The glue ends here.

fn main() -> ExitCode {
    match run() {
        Ok(line) => {
            println!("ok: {line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("own_router: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<String> {
    let argument = env::args().nth(1).ok_or("usage: own_router ADDRESS, such as 0000:01:00.0")?;
    let address = argument.parse()?;
    let vm = create_vm()?;
    let container = IommuContext::open()?;
    let link = KvmLink::new(&vm).map_err(failed("KVM_CREATE_DEVICE(VFIO)"))?;
    container.link(Arc::new(link))?;
    let device = container.open_device(address)?;
    interrupt(vm, address, device)
}

/// A VM with an interrupt controller in the kernel.
pub fn create_vm() -> Result<Arc<VmFd>> {
    let kvm = Kvm::new().map_err(failed("open /dev/kvm"))?;
    let vm = kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
    vm.create_irq_chip().map_err(failed("KVM_CREATE_IRQCHIP"))?;
    Ok(Arc::new(vm))
}

/// Has an interrupt of the VMM's own device and one of the assigned device delivered by one table.
pub fn interrupt(vm: Arc<VmFd>, address: PciAddress, device: Arc<dyn Device>) -> Result<String> {
    let cpu = create_vcpu(&vm)?;
    let (routes, irqfds) = (Mutex::default(), Mutex::default());
    let table = Arc::new(Table { vm: vm.clone(), routes, irqfds });
    let own = Arc::new(EventFd::new(EFD_NONBLOCK)?);
    table.change(|routes| routes.extend([(OWN_GSI, OWN)]))?;
    table.attach(OWN_GSI, own)?;
    // The other services are the library's: it takes them one by one.
    let services = VmmServices {
        slots: Arc::new(KvmMemory::new(vm, 0..16, Arc::default())),
        msi: Arc::new(Router { table: table.clone(), next: FIRST_GSI.into() }),
        intx: None,
        p2p: None,
    };
    let function = PassthroughFunction::new(address, device, &services, ResetPolicy::Required)?;
    enable_msix(&function)?;
    let irqfds = lock(&table.irqfds).clone();
    println!("routes: {:x?}", lock(&table.routes));
    for (gsi, eventfd) in &irqfds {
        eventfd.write(1).map_err(failed(&format!("signal the eventfd of GSI {gsi}")))?;
    }
    for message in [OWN, ASSIGNED] {
        wait_for(&cpu, message)?;
    }
    function.shutdown()?;
    drop((function, services));
    match lock(&table.routes).keys().eq([&OWN_GSI]) {
        true => {
            Ok(format!("a route of the VMM's own and one of {address} delivered an interrupt each"))
        }
        false => Err("routes of the function stay".into()),
    }
}

/// Does what a driver does: programs the first entry of the MSI-X table (PCI 6.8.2), and enables
/// MSI-X.
fn enable_msix(function: &PassthroughFunction) -> Result<()> {
    let read = |offset: u16| {
        let mut data = [0; 4];
        function.config_read(offset, &mut data);
        u32::from_le_bytes(data)
    };
    let first = read(regs::CAPABILITIES).to_le_bytes()[0];
    let found = caps::standard(first, |offset| (read(offset) & 0xffff) as u16).found;
    let msix = found.iter().find(|capability| capability.id == regs::cap::MSIX);
    let msix = msix.ok_or_else(|| format!("{} has no MSI-X", function.address()))?.offset;
    // The lower 3 bits are the BAR, the others the offset in it.
    let table = read(msix + regs::MSIX_TABLE);
    let bar = BarIndex::new((table & 7) as u8).ok_or("the MSI-X table is in no BAR")?;
    let entry = u64::from(table & !7);
    // Nothing is left to do for the VMM: BARs did not move, and it coalesces no writes.
    let _ = function.bar_write(bar, entry, &ASSIGNED.address.to_le_bytes());
    let _ = function.bar_write(bar, entry + 8, &ASSIGNED.data.to_le_bytes());
    let _ = function.bar_write(bar, entry + 12, &0_u32.to_le_bytes());
    let _ = function.config_write(msix + regs::MSIX_CONTROL, &regs::MSIX_ENABLE.to_le_bytes());
    Ok(())
}

/// A CPU whose APIC is enabled: bit 8 of the spurious interrupt vector register (SDM 3A, 11.9).
fn create_vcpu(vm: &VmFd) -> Result<VcpuFd> {
    let cpu = vm.create_vcpu(0).map_err(failed("KVM_CREATE_VCPU"))?;
    let mut apic = cpu.get_lapic().map_err(failed("KVM_GET_LAPIC"))?;
    apic.regs[0xf0..0xf2].copy_from_slice(&[-1, 1]);
    cpu.set_lapic(&apic).map_err(failed("KVM_SET_LAPIC"))?;
    Ok(cpu)
}

/// Waits until the CPU's APIC has an interrupt in its request register (SDM 3A, 11.8.4): 8 words,
/// 16 bytes apart.
fn wait_for(cpu: &VcpuFd, message: MsiMessage) -> Result<()> {
    let interrupt = message.data as usize;
    let register = 0x200 + interrupt / 32 * 16 + interrupt % 32 / 8;
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        let apic = cpu.get_lapic().map_err(failed("KVM_GET_LAPIC"))?;
        let requests = apic.regs.get(register).ok_or("the APIC has 256 interrupts")?;
        if requests >> (interrupt % 8) & 1 != 0 {
            println!("interrupt {interrupt:#x} arrived");
            return Ok(());
        }
    }
    Err(format!("interrupt {interrupt:#x} did not arrive").into())
}

/// The entry of KVM's table for a message (Documentation/virt/kvm/api.rst, 4.52).
fn entry(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi.address_lo = (message.address & 0xffff_ffff) as u32;
    entry.u.msi.address_hi = (message.address >> 32) as u32;
    entry.u.msi.data = message.data;
    entry
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn errno(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}

/// Says what failed.
fn failed<E: Display>(what: &str) -> impl Fn(E) -> String {
    move |error| format!("{what}: {error}")
}
