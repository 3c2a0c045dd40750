//! vCPUs: each has a thread that runs the guest and forwards its accesses to the buses.

mod gate;

use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use devices::PowerSink;
use kvm_bindings::{KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION};
use kvm_ioctls::{VcpuExit, VcpuFd};
use nix::errno::Errno;
use vm_device::bus::{MmioAddress, PioAddress};
use vm_device::device_manager::{IoManager, MmioManager, PioManager};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::stats::Stats;
use super::stop::{Outcome, Stop, StopOnRequest};
use crate::error::Error;
use crate::guest::arch;
use crate::host::limits;
use crate::host::seccomp::Filter;
use crate::passthrough::coalesced::CoalescedWrites;

pub(crate) use gate::Gate;

/// A vCPU thread formats at most an error; the default of 2 MiB would waste address space.
const STACK: usize = 256 << 10;
/// The interval between kicks of a thread that has not stopped yet.
const KICK_INTERVAL: Duration = Duration::from_millis(1);

/// The state that vCPU threads share.
pub(crate) struct Machine {
    pub(crate) buses: IoManager,
    /// Coalesced writes to replay.
    pub(crate) coalesced: Arc<CoalescedWrites>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) stop: Arc<Stop>,
    /// The gate at which the threads wait while the guest is paused.
    pub(crate) gate: Gate,
    /// The threads' seccomp filter.
    pub(crate) filter: Arc<Filter>,
}

/// A vCPU that does not run yet.
pub(crate) struct Vcpu {
    pub(crate) fd: VcpuFd,
    /// The number.
    pub(crate) index: u8,
}

/// A vCPU in its thread. Dropping the value ends the thread.
pub(crate) struct RunningVcpu {
    thread: Option<JoinHandle<()>>,
    stop: Arc<Stop>,
}

/// All vCPUs of a guest in their threads. Dropping the value ends the threads.
pub(crate) struct Vcpus {
    running: Vec<RunningVcpu>,
    machine: Arc<Machine>,
}

impl Vcpus {
    /// Starts all vCPUs.
    pub(crate) fn start(vcpus: Vec<Vcpu>, machine: &Arc<Machine>) -> Result<Self, Error> {
        let needed = limits::threads_needed(u8::try_from(vcpus.len()).unwrap_or(u8::MAX));
        let start = |vcpu: Vcpu| {
            let started = vcpu.start(Arc::clone(machine));
            started.map_err(|source| Error::Thread { needed, source })
        };
        Ok(Self {
            running: vcpus.into_iter().map(start).collect::<Result<_, _>>()?,
            machine: Arc::clone(machine),
        })
    }

    /// Pauses the vCPUs: when this returns, none executes guest instructions.
    ///
    /// A kick between a thread's check of the gate and `KVM_RUN` has no effect, so kicks repeat.
    pub(crate) fn pause(&self) {
        let machine = &self.machine;
        machine.gate.close();
        while !machine.gate.has_waiting(self.running.len(), KICK_INTERVAL)
            && !machine.stop.is_requested()
        {
            self.running.iter().for_each(RunningVcpu::kick);
        }
    }

    /// Resumes the vCPUs.
    pub(crate) fn resume(&self) {
        self.machine.gate.open();
    }

    /// Whether the vCPUs are paused.
    pub(crate) fn is_paused(&self) -> bool {
        self.machine.gate.is_closed()
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.machine.stop.request(Outcome::Quit);
        self.machine.gate.open();
    }
}

/// Only interrupts a system call.
extern "C" fn interrupt(_: i32, _: *mut nix::libc::siginfo_t, _: *mut nix::libc::c_void) {}

/// Installs the signal handler of kicks. Call this once, before any vCPU runs.
pub(crate) fn prepare_kicks() -> Result<(), Error> {
    register_signal_handler(SIGRTMIN(), interrupt).map_err(|e| Error::System {
        what: "sigaction",
        source: std::io::Error::from_raw_os_error(e.errno()),
    })
}

impl Vcpu {
    /// Runs the vCPU in a thread until a stop is requested.
    pub(crate) fn start(mut self, machine: Arc<Machine>) -> std::io::Result<RunningVcpu> {
        let stop = Arc::clone(&machine.stop);
        let name = format!("vcpu{}", self.index);
        let run = move || self.run(&machine);
        let thread = Builder::new().name(name).stack_size(STACK).spawn(run);
        Ok(RunningVcpu { thread: Some(thread?), stop })
    }

    fn run(&mut self, machine: &Machine) {
        let _guard = ReportPanic(&machine.stop, self.index);
        if let Err(error) = machine.filter.install() {
            machine.stop.request(Outcome::Failed(error));
        }
        while !machine.stop.is_requested() {
            if machine.gate.pass() {
                arch::resumed(&self.fd);
                continue;
            }
            if let Err(error) = self.run_once(machine) {
                machine.stop.request(Outcome::Failed(error));
            }
        }
    }

    /// Enters the guest and handles one exit.
    fn run_once(&mut self, machine: &Machine) -> Result<(), Error> {
        let exits = &machine.stats.exits;
        exits.total.add_one();
        match self.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                exits.io_in.add_one();
                let data: *mut [u8] = data;
                let width = port_width(&mut self.fd);
                // SAFETY: KVM does not access these bytes while the vCPU does not run. They lie
                // past the end of the struct that `port_width` reads (api.rst, 5: data_offset), and
                // no other reference to them exists.
                let data = unsafe { &mut *data };
                let each = data.chunks_mut(width);
                machine.in_order(|machine| each.for_each(|data| machine.port_read(port, data)));
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                exits.io_out.add_one();
                let data: *const [u8] = data;
                let width = port_width(&mut self.fd);
                // SAFETY: as for reads.
                let data = unsafe { &*data };
                let each = data.chunks(width);
                machine.in_order(|machine| each.for_each(|data| machine.port_write(port, data)));
            }
            Ok(VcpuExit::MmioRead(gpa, data)) => {
                exits.mmio_read.add_one();
                machine.in_order(|machine| machine.memory_read(gpa, data));
            }
            Ok(VcpuExit::MmioWrite(gpa, data)) => {
                exits.mmio_write.add_one();
                machine.in_order(|machine| machine.memory_write(gpa, data));
            }
            Ok(VcpuExit::Hlt) => exits.hlt.add_one(),
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => exits.other.add_one(),
            Ok(VcpuExit::InternalError) => {
                exits.other.add_one();
                let what = internal_error(&mut self.fd);
                return Err(self.failure(&what));
            }
            Ok(exit) => {
                exits.other.add_one();
                match arch::power_request(&exit) {
                    Some(request) => StopOnRequest(Arc::clone(&machine.stop)).request(request),
                    None => {
                        let what = fatal(&exit);
                        return Err(self.failure(&what));
                    }
                }
            }
            Err(error) => {
                exits.other.add_one();
                return self.failed_run(error);
            }
        }
        Ok(())
    }

    /// Ignores EINTR (a kick) and EAGAIN (a vCPU that waits for its start).
    fn failed_run(&self, error: kvm_ioctls::Error) -> Result<(), Error> {
        match Errno::from_raw(error.errno()) {
            Errno::EINTR | Errno::EAGAIN => Ok(()),
            _ => Err(self.failure(&format!("KVM_RUN failed: {error}"))),
        }
    }

    fn failure(&self, what: &str) -> Error {
        let place = arch::place(&self.fd);
        Error::Vcpu(format!("vCPU {} of the guest{place}: {what}", self.index))
    }
}

/// The access width of the last port exit. A string instruction makes several accesses to one port
/// in one exit (Documentation/virt/kvm/api.rst, 5: `KVM_EXIT_IO`).
fn port_width(fd: &mut VcpuFd) -> usize {
    // SAFETY: every variant of the union is plain numbers, and KVM filled in the variant of this
    // exit.
    let io = unsafe { fd.get_kvm_run().__bindgen_anon_1.io };
    usize::from(io.size.max(1))
}

/// Describes the last exit, which is KVM_EXIT_INTERNAL_ERROR.
fn internal_error(fd: &mut VcpuFd) -> String {
    // SAFETY: as in `port_width`.
    let suberror = unsafe { fd.get_kvm_run().__bindgen_anon_1.internal.suberror };
    let why = match suberror {
        KVM_INTERNAL_ERROR_EMULATION => ": it cannot emulate an instruction",
        KVM_INTERNAL_ERROR_DELIVERY_EV => ": an exit interrupted the delivery of an event",
        _ => "",
    };
    format!("KVM cannot continue (KVM_EXIT_INTERNAL_ERROR, suberror {suberror}){why}")
}

/// Stops the machine when its thread panics. Only builds that unwind need this; in this program's
/// release build a panic aborts the process.
struct ReportPanic<'a>(&'a Stop, u8);

impl Drop for ReportPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let text = format!("the thread of vCPU {} panicked; this is a bug of the VMM", self.1);
            self.0.request(Outcome::Failed(Error::Vcpu(text)));
        }
    }
}

/// Describes an exit that ends the guest.
fn fatal(exit: &VcpuExit<'_>) -> String {
    match exit {
        VcpuExit::Shutdown => "triple fault (KVM_EXIT_SHUTDOWN)".into(),
        VcpuExit::FailEntry(reason, cpu) => {
            format!("the host's CPU {cpu} failed to enter the guest (reason {reason:#x})")
        }
        VcpuExit::SystemEvent(kind, _) => format!("system event {kind}"),
        VcpuExit::MemoryFault { gpa, size, .. } => {
            format!("no memory at {gpa:#x} (size {size:#x})")
        }
        other => format!("unknown exit: {other:?}"),
    }
}

impl Machine {
    /// Replays earlier coalesced writes, makes the access, and replays again: an access can end a
    /// coalesced zone, and no later exit may come for the writes of that zone.
    fn in_order(&self, access: impl FnOnce(&Self)) {
        self.replay_coalesced();
        access(self);
        self.replay_coalesced();
    }

    fn replay_coalesced(&self) {
        self.coalesced.replay(|gpa, data| {
            self.stats.exits.coalesced.add_one();
            self.memory_write(gpa, data);
        });
    }

    fn port_read(&self, port: u16, data: &mut [u8]) {
        if self.buses.pio_read(PioAddress(port), data).is_err() {
            data.fill(0xff);
            self.stats.devices.unclaimed.read(port.into());
        }
    }

    fn port_write(&self, port: u16, data: &[u8]) {
        if self.buses.pio_write(PioAddress(port), data).is_err() {
            self.stats.devices.unclaimed.write(port.into());
        }
    }

    fn memory_read(&self, gpa: u64, data: &mut [u8]) {
        if self.buses.mmio_read(MmioAddress(gpa), data).is_err() {
            data.fill(0xff);
            self.stats.devices.unclaimed.read(gpa);
        }
    }

    fn memory_write(&self, gpa: u64, data: &[u8]) {
        if self.buses.mmio_write(MmioAddress(gpa), data).is_err() {
            self.stats.devices.unclaimed.write(gpa);
        }
    }
}

impl RunningVcpu {
    fn kick(&self) {
        // A finished thread needs no kick.
        let _ = self.thread.as_ref().map(|thread| thread.kill(SIGRTMIN()));
    }
}

impl Drop for RunningVcpu {
    /// Kicks the thread until it has seen the stop. A kick between the thread's check and `KVM_RUN`
    /// has no effect, so kicks repeat.
    fn drop(&mut self) {
        self.stop.request(Outcome::Quit);
        let Some(thread) = self.thread.take() else {
            return;
        };
        while !thread.is_finished() {
            if thread.kill(SIGRTMIN()).is_err() {
                break;
            }
            std::thread::sleep(KICK_INTERVAL);
        }
        if thread.join().is_err() {
            log::error!("a vCPU thread panicked");
        }
    }
}

/// The guest of these tests runs x86 code.
#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod tests {
    use kvm_ioctls::Kvm;
    use vfio_passthrough::kvm::KvmHost;
    use vm_device::DevicePio;
    use vm_device::bus::{PioAddressOffset, PioRange};
    use vm_memory::{Bytes, GuestAddress, GuestRegionMmap, MemoryRegionAddress};

    use super::*;
    use crate::config::Thread;

    /// A device with a bug: its write panics.
    struct Broken;

    impl DevicePio for Broken {
        fn pio_read(&self, _: PioAddress, _: PioAddressOffset, _: &mut [u8]) {}

        fn pio_write(&self, _: PioAddress, _: PioAddressOffset, _: &[u8]) {
            panic!("the device's bug");
        }
    }

    const PORT: u8 = 0x10;

    #[test]
    fn a_panic_of_a_vcpu_thread_stops_the_machine() {
        let Ok(kvm) = Kvm::new() else {
            return eprintln!("NOT RUN: a_panic_of_a_vcpu_thread_stops_the_machine: no /dev/kvm");
        };
        let vm = Arc::new(kvm.create_vm().unwrap());
        let ram = Arc::new(GuestRegionMmap::<()>::from_range(GuestAddress(0), 4096, None).unwrap());
        // out PORT, al; jmp .
        ram.write_slice(&[0xe6, PORT, 0xeb, 0xfe], MemoryRegionAddress(0)).unwrap();
        let host = KvmHost::new(Arc::clone(&vm), 0..1, 24..25);
        let _slot = host.memory().place(0, ram).unwrap();
        let fd = vm.create_vcpu(0).unwrap();
        let mut special = fd.get_sregs().unwrap();
        (special.cs.base, special.cs.selector) = (0, 0);
        fd.set_sregs(&special).unwrap();
        let mut registers = fd.get_regs().unwrap();
        registers.rip = 0;
        fd.set_regs(&registers).unwrap();

        let mut buses = IoManager::new();
        let port = PioRange::new(PioAddress(PORT.into()), 1).unwrap();
        buses.register_pio(port, Arc::new(Broken)).unwrap();
        let stop = Arc::new(Stop::new().unwrap());
        let machine = Machine {
            buses,
            coalesced: Arc::default(),
            stats: Arc::default(),
            stop: Arc::clone(&stop),
            gate: Gate::default(),
            filter: Arc::new(Filter::new(&"off".parse().unwrap(), Thread::Vcpu).unwrap()),
        };
        prepare_kicks().unwrap();
        let running = Vcpu { fd, index: 0 }.start(Arc::new(machine)).unwrap();
        while !stop.is_requested() {
            std::thread::yield_now();
        }
        drop(running);
        let outcome = Arc::into_inner(stop).and_then(Stop::into_outcome);
        let Some(Outcome::Failed(error)) = outcome else { panic!("{outcome:?}") };
        assert!(error.to_string().contains("vCPU 0 panicked"), "{error}");
    }
}
