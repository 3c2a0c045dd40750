//! The registers of ACPI hot-plug: which slots have a device, which got one, and which the host
//! asks for.
//!
//! Native PCI Express hot-plug would need a root port for each slot. With ACPI, a guest's methods
//! read these registers after an interrupt, and notify the slots (ACPI 6.5, 5.6.6).

use std::sync::{Mutex, MutexGuard, PoisonError};

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

use crate::SLOTS;

/// Learns when the guest ejects a slot.
pub trait EjectSink: Send + Sync {
    /// The guest no longer uses the devices in `slot`. The call comes from a vCPU's thread, and other
    /// users of the registers wait for its end: it must return soon.
    fn ejected(&self, slot: u8);
}

/// Four registers of 32 bits, one bit for each slot, as a device on the port bus.
pub struct HotPlug<S> {
    slots: Mutex<Slots>,
    sink: S,
}

#[derive(Debug, Default)]
struct Slots {
    present: u32,
    arrived: u32,
    wanted: u32,
}

/// Port numbers, which do not depend on the sink.
impl HotPlug<()> {
    /// The first port.
    pub const BASE: u16 = 0x608;
    /// The number of ports.
    pub const SIZE: u16 = 16;
    /// Slots that got a device since the last read.
    pub const ARRIVED: u16 = Self::BASE;
    /// Slots that the host wants back since the last read.
    pub const WANTED: u16 = Self::BASE + 4;
    /// Slots that have a device.
    pub const PRESENT: u16 = Self::BASE + 8;
    /// Write-only: ejects slots.
    pub const EJECT: u16 = Self::BASE + 12;
}

impl<S: EjectSink> HotPlug<S> {
    /// Registers of a bus with devices in the slots `present`. `sink` learns of ejected slots.
    pub fn new(present: impl IntoIterator<Item = u8>, sink: S) -> Self {
        let present = present.into_iter().map(bit).fold(0, |all, slot| all | slot);
        Self { slots: Mutex::new(Slots { present, ..Slots::default() }), sink }
    }

    /// Reports a new device in `slot`. The VMM then raises the guest's interrupt.
    pub fn arrive(&self, slot: u8) {
        let mut slots = self.slots();
        slots.present |= bit(slot);
        slots.arrived |= bit(slot);
    }

    /// Asks the guest for the device in `slot`. The VMM then raises the guest's interrupt.
    pub fn want(&self, slot: u8) {
        self.slots().wanted |= bit(slot);
    }

    /// Whether `slot` has a device that the guest has not ejected.
    pub fn has(&self, slot: u8) -> bool {
        self.slots().present & bit(slot) != 0
    }

    /// Whether the guest has not read an arrival or a request yet.
    pub fn is_unread(&self) -> bool {
        let slots = self.slots();
        slots.arrived | slots.wanted != 0
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn eject(&self, asked: u32) {
        // Until the sink knows of a slot, it has a device.
        let mut slots = self.slots();
        let present = slots.leave(asked);
        (0..SLOTS)
            .filter(|slot| present & bit(*slot) != 0)
            .for_each(|slot| self.sink.ejected(slot));
    }
}

impl Slots {
    /// Empties slots, and returns those that had a device.
    fn leave(&mut self, slots: u32) -> u32 {
        let had = self.present & slots;
        [&mut self.present, &mut self.arrived, &mut self.wanted]
            .into_iter()
            .for_each(|register| *register &= !slots);
        had
    }

    fn read(&mut self, port: u16) -> u32 {
        match port {
            HotPlug::ARRIVED => std::mem::take(&mut self.arrived),
            HotPlug::WANTED => std::mem::take(&mut self.wanted),
            HotPlug::PRESENT => self.present,
            _ => 0,
        }
    }
}

/// The bit of a slot; none for a number that is not a slot's.
fn bit(slot: u8) -> u32 {
    1_u32.checked_shl(slot.into()).unwrap_or(0)
}

/// Only accesses of 32 bits have an effect, as the DSDT declares them.
impl<S: EjectSink> DevicePio for HotPlug<S> {
    fn pio_read(&self, base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(dword) => {
                *dword = self.slots().read(base.0.wrapping_add(offset)).to_le_bytes();
            }
            Err(_) => data.fill(0),
        }
    }

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        if let (HotPlug::EJECT, Ok(dword)) = (base.0.wrapping_add(offset), data.try_into()) {
            self.eject(u32::from_le_bytes(dword));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Ejected(Mutex<Vec<u8>>);

    impl EjectSink for &Ejected {
        fn ejected(&self, slot: u8) {
            self.0.lock().unwrap().push(slot);
        }
    }

    const BASE: PioAddress = PioAddress(HotPlug::BASE);

    fn read(registers: &HotPlug<&Ejected>, port: u16) -> u32 {
        let mut data = [0xee; 4];
        registers.pio_read(BASE, port - HotPlug::BASE, &mut data);
        u32::from_le_bytes(data)
    }

    fn eject(registers: &HotPlug<&Ejected>, slots: u32) {
        registers.pio_write(BASE, HotPlug::EJECT - HotPlug::BASE, &slots.to_le_bytes());
    }

    #[test]
    fn an_arrival_is_reported_once_and_stays_present() {
        let sink = Ejected::default();
        let registers = HotPlug::new([0, 2], &sink);
        assert_eq!([HotPlug::PRESENT, HotPlug::ARRIVED].map(|port| read(&registers, port)), [5, 0]);
        assert!(!registers.is_unread());
        registers.arrive(31);
        assert!(registers.is_unread());
        let arrived = 1 << 31;
        assert_eq!(read(&registers, HotPlug::ARRIVED), arrived);
        assert_eq!(read(&registers, HotPlug::ARRIVED), 0);
        assert_eq!(read(&registers, HotPlug::PRESENT), arrived | 5);
    }

    #[test]
    fn a_wanted_slot_is_reported_again_if_the_host_asks_again() {
        let sink = Ejected::default();
        let registers = HotPlug::new([3], &sink);
        for _ in 0..2 {
            registers.want(3);
            assert!(registers.is_unread());
            assert_eq!(read(&registers, HotPlug::WANTED), 8);
            assert!(!registers.is_unread());
            assert_eq!(read(&registers, HotPlug::WANTED), 0);
        }
    }

    #[test]
    fn ejects_present_slots_and_each_once() {
        let sink = Ejected::default();
        let registers = HotPlug::new([1, 4, 5], &sink);
        registers.want(4);
        eject(&registers, 1 << 1 | 1 << 4 | 1 << 9);
        eject(&registers, 1 << 4);
        assert_eq!(*sink.0.lock().unwrap(), [1, 4]);
        assert_eq!(read(&registers, HotPlug::PRESENT), 1 << 5);
        assert_eq!(read(&registers, HotPlug::WANTED), 0, "the slot is empty");
    }

    #[test]
    fn an_arrival_that_the_guest_ejects_before_it_reads_it_is_not_reported() {
        let sink = Ejected::default();
        let registers = HotPlug::new([], &sink);
        registers.arrive(6);
        assert!(registers.has(6));
        eject(&registers, 1 << 6);
        assert_eq!([HotPlug::ARRIVED, HotPlug::PRESENT].map(|port| read(&registers, port)), [0, 0]);
        assert!(!registers.has(6) && !registers.has(32));
    }

    #[test]
    fn narrow_accesses_and_other_registers_have_no_effect() {
        let sink = Ejected::default();
        let registers = HotPlug::new([0], &sink);
        registers.arrive(1);
        let mut data = [0xee; 2];
        registers.pio_read(BASE, 0, &mut data);
        assert_eq!(data, [0; 2]);
        assert_eq!(read(&registers, HotPlug::ARRIVED), 2, "the narrow read cleared nothing");
        assert_eq!(read(&registers, HotPlug::EJECT), 0);
        registers.pio_write(BASE, 12, &[1]);
        registers.pio_write(BASE, 0, &[1, 0, 0, 0]);
        assert_eq!(read(&registers, HotPlug::PRESENT), 3);
    }
}
