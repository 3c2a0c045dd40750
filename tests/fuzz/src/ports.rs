//! Target `ports`: a guest accesses two functions by ECAM, by CF8/CFC, and by the memory window of
//! the host bridge; and the registers of hot-plug, while slots change.

use std::sync::{Arc, Mutex};

use devices::{
    ConfigPorts, Ecam, EjectSink, HostBridge, HotPlug, PciFunction, PciRoot, SlotsFreed,
};
use vfio_passthrough::model::Faults;
use vfio_passthrough::{PassthroughFunction, Space};
use vm_device::bus::{MmioAddress, PioAddress};
use vm_device::{DeviceMmio, DevicePio};

use crate::guest::device;
use crate::input::Input;
use crate::oracle::Vm;

/// A passthrough function as a function of the root bus.
struct OnBus(Arc<PassthroughFunction>);

impl PciFunction for OnBus {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.0.config_read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) -> SlotsFreed {
        SlotsFreed(self.0.config_write(offset, data).slots_freed)
    }

    fn retry_placement(&self) {
        let _ = self.0.retry_placement();
    }

    fn memory_read(&self, gpa: u64, data: &mut [u8]) -> bool {
        let decoded = self.0.decode(Space::Memory, gpa);
        decoded.map(|(bar, offset)| self.0.bar_read(bar, offset, data)).is_some()
    }

    fn memory_write(&self, gpa: u64, data: &[u8]) -> Option<SlotsFreed> {
        let (bar, offset) = self.0.decode(Space::Memory, gpa)?;
        let effects = self.0.bar_write(bar, offset, data);
        Some(SlotsFreed(effects.is_some_and(|effects| effects.slots_freed)))
    }
}

/// Slots that the guest ejected.
#[derive(Clone, Default)]
struct Ejected(Arc<Mutex<u32>>);

impl EjectSink for Ejected {
    fn ejected(&self, slot: u8) {
        let mut slots = self.0.lock().unwrap();
        assert_eq!(*slots >> slot & 1, 0, "slot {slot} is reported twice");
        *slots |= 1 << slot;
    }
}

/// The registers, and the slots that must be present.
struct Slots {
    registers: HotPlug<Ejected>,
    ejected: Ejected,
    present: u32,
}

impl Default for Slots {
    fn default() -> Self {
        let ejected = Ejected::default();
        Self { registers: HotPlug::new([1], ejected.clone()), ejected, present: 0b10 }
    }
}

impl Slots {
    fn act(&mut self, kind: u8, offset: u16, data: &mut [u8]) {
        let (slot, base) = (data[0] & 31, PioAddress(HotPlug::BASE));
        let mut expected = 0;
        match kind & 3 {
            0 => {
                self.registers.arrive(slot);
                self.present |= 1 << slot;
            }
            1 => self.registers.want(slot),
            2 => self.registers.pio_read(base, offset, data),
            _ => {
                let dword = <[u8; 4]>::try_from(&*data).map_or(0, u32::from_le_bytes);
                if base.0.wrapping_add(offset) == HotPlug::EJECT {
                    expected = self.present & dword;
                    self.present &= !dword;
                }
                self.registers.pio_write(base, offset, data);
            }
        }
        assert_eq!(std::mem::take(&mut *self.ejected.0.lock().unwrap()), expected);
        let mut present = [0; 4];
        self.registers.pio_read(base, HotPlug::PRESENT - HotPlug::BASE, &mut present);
        assert_eq!(u32::from_le_bytes(present), self.present);
        assert_eq!(self.registers.has(slot), self.present >> slot & 1 != 0);
    }
}

const CF8: PioAddress = PioAddress(ConfigPorts::BASE);
const WINDOW: u64 = 0xe000_0000;

pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let root = PciRoot::new();
    root.push(Arc::new(HostBridge)).unwrap();
    let vms = [0, 1].map(|_| {
        let faults = Arc::new(Faults::default());
        let device = Arc::new(device(input.u8(), &faults));
        let vm = Vm::new(faults, device).expect("a device of the model can be assigned");
        root.push(Arc::new(OnBus(vm.function.clone()))).unwrap();
        vm
    });
    let root = Arc::new(root);
    let (ecam, ports) = (Ecam::new(root.clone()), ConfigPorts::new(root.clone()));
    let mut slots = Slots::default();
    while !input.is_empty() {
        let kind = input.u8();
        let mut data = input.bytes::<8>();
        let data = &mut data[..[1, 2, 4, 8][usize::from(kind >> 6)]];
        let devfn = (u64::from(kind >> 3 & 3) << 15) | u64::from(input.u16());
        match kind & 7 {
            0 => ecam.mmio_read(MmioAddress(0), devfn, data),
            1 | 2 => ecam.mmio_write(MmioAddress(0), devfn, data),
            3 => ports.pio_write(
                CF8,
                0,
                &(1 << 31 | (devfn as u32 >> 12) << 8 | devfn as u32 & 0xff).to_le_bytes(),
            ),
            4 => ports.pio_write(CF8, (devfn & 7) as u16, data),
            5 => ports.pio_read(CF8, (devfn & 7) as u16, data),
            6 => root.mmio_write(MmioAddress(WINDOW), devfn, data),
            _ => root.mmio_read(MmioAddress(WINDOW), devfn, data),
        }
        vms.iter().for_each(Vm::check);
        slots.act(kind, devfn as u16, data);
    }
    compare(&ecam, &ports);
    vms.iter().for_each(Vm::check_idempotence);
    drop((ecam, ports, root));
    vms.into_iter().for_each(Vm::end);
}

/// Checks that both configuration mechanisms read the same values from every slot.
fn compare(ecam: &Ecam, ports: &ConfigPorts) {
    for (slot, register) in
        (0..4_u32).flat_map(|slot| (0..256).step_by(4).map(move |register| (slot, register)))
    {
        let (mut one, mut other) = ([0; 4], [0; 4]);
        ecam.mmio_read(MmioAddress(0), u64::from(slot << 15 | register), &mut one);
        ports.pio_write(CF8, 0, &(1 << 31 | slot << 11 | register).to_le_bytes());
        ports.pio_read(CF8, 4, &mut other);
        assert_eq!(one, other, "slot {slot}, register {register:#x}");
    }
}
