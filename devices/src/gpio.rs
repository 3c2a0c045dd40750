//! A GPIO controller with one input, the power button: an Arm PrimeCell PL061 (Arm DDI 0190). Its
//! interrupts are those of edges, as Linux's driver of buttons uses them.

use std::sync::{Mutex, MutexGuard, PoisonError};

use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};
use vmm_sys_util::eventfd::EventFd;

/// The button's line.
const BUTTON: u8 = 1 << GpioButton::LINE;
/// Offsets of registers (DDI 0190, table 3-1). Those before `DIRECTION` are the data: bits 9 to 2 of
/// the offset are a mask.
const DIRECTION: u64 = 0x400;
const BOTH_EDGES: u64 = 0x408;
const RISING: u64 = 0x40c;
const ENABLE: u64 = 0x410;
const RAW_STATUS: u64 = 0x414;
const STATUS: u64 = 0x418;
const CLEAR: u64 = 0x41c;
/// The identification: part 0x061 of designer 0x41 (Arm), revision 0, and the PrimeCell's.
const IDENTIFICATION: u64 = 0xfe0;
const NUMBERS: [u8; 8] = [0x61, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// The controller, as a device in memory.
pub struct GpioButton {
    registers: Mutex<Registers>,
    interrupt: EventFd,
}

#[derive(Debug, Default)]
struct Registers {
    level: u8,
    both_edges: u8,
    rising: u8,
    enable: u8,
    raw_status: u8,
}

impl GpioButton {
    /// The number of the button's line; the line is high while the button is pressed.
    pub const LINE: u8 = 0;
    /// The size of the registers.
    pub const SIZE: u64 = 0x1000;

    /// A controller that signals `interrupt`, which is edge-triggered.
    pub fn new(interrupt: EventFd) -> Self {
        Self { registers: Mutex::default(), interrupt }
    }

    /// Presses the button. The guest releases it when it reads the line: it waits until the level
    /// is stable, for a time of its own.
    pub fn press(&self) {
        self.change(|registers| registers.set_level(BUTTON));
    }

    /// Changes the registers, and signals a new interrupt.
    fn change<T>(&self, change: impl FnOnce(&mut Registers) -> T) -> T {
        let mut registers = self.lock();
        let before = registers.status();
        let result = change(&mut registers);
        if registers.status() & !before != 0 {
            // The counter overflows only if nobody takes the interrupt; it is then pending.
            let _ = self.interrupt.write(1);
        }
        result
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registers {
    /// The interrupts that are enabled and pending.
    fn status(&self) -> u8 {
        self.raw_status & self.enable
    }

    fn set_level(&mut self, level: u8) {
        let changed = self.level ^ level;
        let wanted = self.both_edges | !(self.rising ^ level);
        self.raw_status |= changed & wanted;
        self.level = level;
    }

    fn read(&mut self, offset: u64) -> u8 {
        match offset {
            0..DIRECTION => self.read_data((offset >> 2) as u8),
            BOTH_EDGES => self.both_edges,
            RISING => self.rising,
            ENABLE => self.enable,
            RAW_STATUS => self.raw_status,
            STATUS => self.status(),
            IDENTIFICATION.. => {
                let index = usize::try_from(offset.saturating_sub(IDENTIFICATION) >> 2);
                index.ok().and_then(|index| NUMBERS.get(index)).copied().unwrap_or_default()
            }
            _ => 0,
        }
    }

    fn read_data(&mut self, mask: u8) -> u8 {
        let data = self.level & mask;
        if data & BUTTON != 0 {
            self.set_level(0);
        }
        data
    }

    /// Lines are inputs, so that writes of data and direction have no effect.
    fn write(&mut self, offset: u64, value: u8) {
        match offset {
            BOTH_EDGES => self.both_edges = value,
            RISING => self.rising = value,
            ENABLE => self.enable = value,
            CLEAR => self.raw_status &= !value,
            _ => {}
        }
    }
}

impl DeviceMmio for GpioButton {
    fn mmio_read(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        data.fill(0);
        if let Some(first) = data.first_mut() {
            *first = self.change(|registers| registers.read(offset));
        }
    }

    fn mmio_write(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        if let Some(first) = data.first() {
            self.change(|registers| registers.write(offset, *first));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    fn button() -> (GpioButton, EventFd) {
        let interrupt = EventFd::new(EFD_NONBLOCK).unwrap();
        (GpioButton::new(interrupt.try_clone().unwrap()), interrupt)
    }

    fn read(button: &GpioButton, offset: u64) -> u8 {
        let mut data = [0xff; 4];
        button.mmio_read(MmioAddress(0), offset, &mut data);
        assert_eq!(data[1..], [0; 3]);
        data[0]
    }

    fn write(button: &GpioButton, offset: u64, value: u8) {
        button.mmio_write(MmioAddress(0), offset, &[value]);
    }

    #[test]
    fn a_press_is_an_edge_up_and_its_reading_an_edge_down() {
        let (button, interrupt) = button();
        write(&button, BOTH_EDGES, BUTTON);
        write(&button, ENABLE, BUTTON);
        button.press();
        button.press();
        assert_eq!((interrupt.read().unwrap(), read(&button, STATUS)), (1, BUTTON));
        write(&button, CLEAR, BUTTON);
        assert_eq!(read(&button, STATUS), 0);
        assert_eq!(read(&button, 0x2 << 2), 0, "another line");
        assert_eq!(read(&button, u64::from(BUTTON) << 2), BUTTON);
        assert_eq!((interrupt.read().unwrap(), read(&button, STATUS)), (1, BUTTON));
        write(&button, CLEAR, BUTTON);
        assert_eq!(read(&button, 0xff << 2), 0, "released");
        assert!(interrupt.read().is_err());
    }

    #[test]
    fn a_press_waits_until_the_guest_enables_the_interrupt() {
        let (button, interrupt) = button();
        write(&button, RISING, BUTTON);
        button.press();
        assert!(interrupt.read().is_err() && read(&button, RAW_STATUS) == BUTTON);
        write(&button, ENABLE, BUTTON);
        assert_eq!(interrupt.read().unwrap(), 1);
    }

    #[test]
    fn only_edges_of_the_chosen_kind_are_interrupts() {
        let (button, _) = button();
        button.press();
        assert_eq!(read(&button, RAW_STATUS), 0, "falling edges only");
        read(&button, 0xff << 2);
        assert_eq!(read(&button, RAW_STATUS), BUTTON);
    }

    #[test]
    fn has_the_identification_of_the_part() {
        let (button, _) = button();
        let numbers: Vec<_> = (0..8).map(|index| read(&button, 0xfe0 + 4 * index)).collect();
        assert_eq!(numbers, NUMBERS);
        assert_eq!([DIRECTION, CLEAR, 0x500].map(|offset| read(&button, offset)), [0; 3]);
    }
}
