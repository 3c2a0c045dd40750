//! Writes of the guest that KVM coalesces, in place of leaving the guest for each (KVM's coalesced
//! MMIO and PIO: Documentation/virt/kvm/api.rst, 4.116).
//!
//! Only for writes that may come late. KVM puts them into a ring that all CPUs of a VM share, and
//! whoever handles an exit first replays what is in it: so nothing that the guest does overtakes
//! what it wrote.

use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd};
use std::sync::{Arc, OnceLock, PoisonError};

use devices::ConfigPorts;
use kvm_bindings::kvm_coalesced_mmio;
use kvm_ioctls::{Cap, IoEventAddress, VcpuFd, VmFd};
use vfio_passthrough::{ByteRange, ConfigEffects};

use super::sync::Mutex;
use crate::error::Error;

/// The address register of PCI configuration mechanism #1, whether there is one or not: the access
/// that it is for, to the data register, is an exit. Linux writes it for each slot before it has
/// found ECAM.
const CONFIG_ADDRESS: IoEventAddress = IoEventAddress::Pio(ConfigPorts::BASE as u64);
const CONFIG_ADDRESS_SIZE: u32 = 4;

/// The coalesced writes of one VM. None is coalesced until it is opened.
#[derive(Default)]
pub(crate) struct CoalescedWrites(OnceLock<Ring>);

struct Ring {
    vm: Arc<VmFd>,
    /// Another handle of a CPU, for its mapping of the ring only.
    vcpu: Mutex<VcpuFd>,
    _config_address: Option<Zone>,
}

impl CoalescedWrites {
    /// Finds the ring, by any CPU of the VM. From here on whoever runs its CPUs must call
    /// [`CoalescedWrites::replay`].
    pub(crate) fn open(&self, vm: &Arc<VmFd>, vcpu: &VcpuFd) -> Result<(), Error> {
        // It came after that for memory (Linux 4.20).
        if !vm.check_extension(Cap::CoalescedPio) {
            return Ok(());
        }
        // SAFETY: `vcpu` keeps the fd open.
        let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        let fd = fd.try_clone_to_owned().map_err(Error::system("dup"))?.into_raw_fd();
        // SAFETY: the fd is that of a vCPU of this VM, just duplicated, and owned by nobody else.
        let vcpu = unsafe { vm.create_vcpu_from_rawfd(fd) };
        let mut vcpu = vcpu.map_err(Error::kvm("mmap of a vCPU"))?;
        vcpu.map_coalesced_mmio_ring().map_err(Error::kvm("mmap of the coalesced MMIO ring"))?;
        // Where there is one already, that one does.
        let _ = self.0.set(Ring {
            vm: Arc::clone(vm),
            vcpu: Mutex::new(vcpu),
            _config_address: Zone::begin(vm, CONFIG_ADDRESS, CONFIG_ADDRESS_SIZE),
        });
        Ok(())
    }

    /// Gives all coalesced writes to `replay`, in order: the address, and what was written.
    ///
    /// While one thread does so, others wait.
    pub(crate) fn replay(&self, mut replay: impl FnMut(IoEventAddress, &[u8])) {
        let Some(ring) = self.0.get() else { return };
        let mut vcpu = ring.vcpu.lock().unwrap_or_else(PoisonError::into_inner);
        while let Ok(Some(write)) = vcpu.coalesced_mmio_read() {
            let length = usize::try_from(write.len).unwrap_or(usize::MAX);
            replay(address(&write), write.data.get(..length).unwrap_or_default());
        }
    }
}

/// Coalesces the guest's writes to a range of its memory.
pub(crate) trait Coalesce: Send + Sync {
    /// Coalesces writes to `size` bytes from `start` on until the value is dropped; `None` where
    /// each is an exit.
    fn coalesce(&self, start: u64, size: u32) -> Option<Box<dyn Send>>;
}

impl Coalesce for CoalescedWrites {
    fn coalesce(&self, start: u64, size: u32) -> Option<Box<dyn Send>> {
        let zone = Zone::begin(&self.0.get()?.vm, IoEventAddress::Mmio(start), size)?;
        Some(Box::new(zone))
    }
}

fn address(write: &kvm_coalesced_mmio) -> IoEventAddress {
    // SAFETY: both variants of the union are one number: KVM's, or the zero of a kernel that
    // coalesces no ports.
    match unsafe { write.__bindgen_anon_1.pio } {
        0 => IoEventAddress::Mmio(write.phys_addr),
        _ => IoEventAddress::Pio(write.phys_addr),
    }
}

/// A range whose writes are coalesced, until this is dropped (KVM's `kvm_coalesced_mmio_zone`).
struct Zone {
    vm: Arc<VmFd>,
    start: IoEventAddress,
    size: u32,
}

impl Zone {
    /// Coalesces the writes to a range from now on. Where KVM does not, each is an exit.
    fn begin(vm: &Arc<VmFd>, start: IoEventAddress, size: u32) -> Option<Self> {
        match vm.register_coalesced_mmio(start, size) {
            Ok(()) => Some(Self { vm: Arc::clone(vm), start, size }),
            Err(error) => {
                log::debug!("KVM_REGISTER_COALESCED_MMIO: {error}");
                None
            }
        }
    }
}

impl Drop for Zone {
    fn drop(&mut self) {
        if let Err(error) = self.vm.unregister_coalesced_mmio(self.start, self.size) {
            log::error!(
                "KVM_UNREGISTER_COALESCED_MMIO: {error}; writes to {:#x?} come late",
                self.start
            );
        }
    }
}

/// The one range of a function whose writes may be coalesced, wherever it is at the time.
pub(crate) struct CoalescedRange {
    writes: Arc<dyn Coalesce>,
    now: Mutex<Now>,
}

#[derive(Default)]
struct Now {
    /// The number of the effects that were applied last.
    sequence: u64,
    range: Option<ByteRange>,
    zone: Option<Box<dyn Send>>,
}

impl CoalescedRange {
    /// Nowhere yet.
    pub(crate) fn new(writes: Arc<dyn Coalesce>) -> Self {
        Self { writes, now: Mutex::default() }
    }

    /// Coalesces where `effects` say, unless newer ones came first. Writes to the former place are
    /// still to be replayed.
    pub(crate) fn apply(&self, effects: &ConfigEffects) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if effects.sequence <= now.sequence {
            return;
        }
        now.sequence = effects.sequence;
        if now.range != effects.coalesced_writes {
            // The former range ends before the new one begins.
            now.zone = None;
            now.range = effects.coalesced_writes;
            now.zone = now.range.and_then(|range| self.coalesce(range));
        }
    }

    fn coalesce(&self, range: ByteRange) -> Option<Box<dyn Send>> {
        let size = u32::try_from(range.size()).ok()?;
        self.writes.coalesce(range.start(), size)
    }
}

#[cfg(test)]
mod tests {
    use kvm_ioctls::{Kvm, VcpuExit};
    use resources::AddressRange;
    use vfio_passthrough::host::MemorySlot;
    use vfio_passthrough::kvm::KvmHost;
    use vm_memory::{Bytes, GuestAddress};

    use crate::guest::memory::Ram;

    use super::*;

    const CODE: u64 = 0x1000;
    const DEVICE: u64 = 0x8000;
    /// Real mode: two words to the device, the second one first; a byte behind them; halt.
    const WRITES: [u8; 18] = [
        0xc7, 0x06, 0x04, 0x80, 0x22, 0x22, // mov word [0x8004], 0x2222
        0xc7, 0x06, 0x00, 0x80, 0x11, 0x11, // mov word [0x8000], 0x1111
        0xc6, 0x06, 0x08, 0x80, 0x33, // mov byte [0x8008], 0x33
        0xf4, // hlt
    ];
    /// Real mode: a configuration address and its data are written; halt.
    const PORT_WRITES: [u8; 16] = [
        0x66, 0xb8, 0x10, 0x18, 0x00, 0x80, // mov eax, 0x80001810
        0xba, 0xf8, 0x0c, // mov dx, 0xcf8
        0x66, 0xef, // out dx, eax
        0xb2, 0xfd, // mov dl, 0xfd
        0xee, // out dx, al
        0xf4, // hlt
        0xf4,
    ];

    struct Machine {
        vm: Arc<VmFd>,
        vcpu: VcpuFd,
        _slots: Vec<MemorySlot>,
    }

    impl Machine {
        fn new(code: &[u8]) -> Option<Self> {
            let vm = Arc::new(Kvm::new().ok()?.create_vm().ok()?);
            let ram = Ram::new(&[AddressRange::new(CODE, 0x1000)]).unwrap();
            ram.memory().write_slice(code, GuestAddress(CODE)).unwrap();
            let host = KvmHost::new(Arc::clone(&vm), 0..1, 24..25);
            let _slots = ram.place(host.memory()).unwrap();
            let vcpu = vm.create_vcpu(0).unwrap();
            Some(Self { vm, vcpu, _slots })
        }

        /// Runs the code to its end; the writes that came as exits.
        fn run(&mut self) -> Vec<(u64, Vec<u8>)> {
            let mut special = self.vcpu.get_sregs().unwrap();
            (special.cs.base, special.cs.selector) = (0, 0);
            self.vcpu.set_sregs(&special).unwrap();
            let mut registers = self.vcpu.get_regs().unwrap();
            (registers.rip, registers.rflags) = (CODE, 2);
            self.vcpu.set_regs(&registers).unwrap();
            let mut exits = Vec::new();
            loop {
                match self.vcpu.run().unwrap() {
                    VcpuExit::MmioWrite(gpa, data) => exits.push((gpa, data.to_vec())),
                    VcpuExit::IoOut(port, data) => exits.push((port.into(), data.to_vec())),
                    VcpuExit::Hlt => return exits,
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    fn effects(sequence: u64, coalesced_writes: Option<ByteRange>) -> ConfigEffects {
        ConfigEffects { sequence, slots_freed: false, coalesced_writes, bars: [None; 7] }
    }

    #[test]
    fn writes_are_coalesced_where_they_may_come_late_and_nowhere_else() {
        let Some(mut machine) = Machine::new(&WRITES) else {
            return eprintln!("writes_are_coalesced did not run: /dev/kvm does not open here");
        };
        let writes = Arc::new(CoalescedWrites::default());
        let [all, none] = [ByteRange::new(DEVICE, 8), None];
        let range = CoalescedRange::new(writes.clone());
        let words = [(DEVICE + 4, vec![0x22; 2]), (DEVICE, vec![0x11; 2])];
        let byte = (DEVICE + 8, vec![0x33]);
        let as_exits = [words.as_slice(), std::slice::from_ref(&byte)].concat();
        range.apply(&effects(1, all));
        assert_eq!(machine.run(), as_exits, "nothing would replay them");
        range.apply(&effects(2, none));
        writes.open(&machine.vm, &machine.vcpu).unwrap();
        range.apply(&effects(3, all));
        assert_eq!(machine.run(), [byte]);
        range.apply(&effects(4, none));
        let mut coalesced = Vec::new();
        writes.replay(|address, data| match address {
            IoEventAddress::Mmio(gpa) => coalesced.push((gpa, data.to_vec())),
            IoEventAddress::Pio(port) => panic!("{port:#x}"),
        });
        assert_eq!(coalesced, words, "in order");
        writes.replay(|_, _| panic!("once"));
        assert_eq!(machine.run(), as_exits);
    }

    #[test]
    fn a_ring_that_is_full_lets_the_others_through_as_exits() {
        let Some(mut machine) = Machine::new(&WRITES) else {
            return eprintln!("a_ring_that_is_full did not run: /dev/kvm does not open here");
        };
        let writes = Arc::new(CoalescedWrites::default());
        writes.open(&machine.vm, &machine.vcpu).unwrap();
        let range = CoalescedRange::new(writes.clone());
        range.apply(&effects(1, ByteRange::new(DEVICE, 16)));
        let mut exits = 0;
        let runs = (1..).find(|_| {
            exits += machine.run().len();
            exits > 0
        });
        let mut coalesced = 0;
        writes.replay(|_, _| coalesced += 1);
        assert_eq!(coalesced + exits, 3 * runs.unwrap(), "none is lost");
    }

    #[test]
    fn a_configuration_address_is_coalesced_and_the_access_that_it_is_for_is_not() {
        let Some(mut machine) = Machine::new(&PORT_WRITES) else {
            return eprintln!("a_configuration_address did not run: /dev/kvm does not open here");
        };
        let writes = CoalescedWrites::default();
        writes.open(&machine.vm, &machine.vcpu).unwrap();
        assert_eq!(machine.run(), [(0xcfd, vec![0x10])]);
        let mut coalesced = Vec::new();
        writes.replay(|address, data| match address {
            IoEventAddress::Mmio(gpa) => panic!("{gpa:#x}"),
            IoEventAddress::Pio(port) => coalesced.push((port, data.to_vec())),
        });
        assert_eq!(coalesced, [(0xcf8, vec![0x10, 0x18, 0, 0x80])]);
    }
}
