//! Reset and power-off: the sleep registers of hardware-reduced ACPI and the reset register.
//!
//! Hardware-reduced ACPI (ACPI 6.5, 4.1) costs a guest the fewest exits: there is no PM timer, no
//! event block and no SCI to probe, and S5 is one write.

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

/// The sleep type that `_S5` in the DSDT names.
pub const SLEEP_TYPE_S5: u8 = 5;
/// The value that the FADT tells the guest to write to the reset register.
pub const RESET_VALUE: u8 = 0x01;

/// Bit 5 of the sleep control register: go (ACPI 6.5, 4.8.3.7).
const SLEEP_ENABLE: u8 = 1 << 5;
/// Bits 4:2 of the sleep control register: the sleep type.
const SLEEP_TYPE: u8 = 0b111 << 2;

/// What the guest asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerRequest {
    /// Sleep state S5.
    PowerOff,
    /// A reset.
    Reset,
}

/// Who hears of the guest's requests.
pub trait PowerSink: Send + Sync {
    /// The guest asked for this; it may ask again before it stops.
    fn request(&self, request: PowerRequest);
}

/// The ports of reset and sleep.
pub struct PowerControl<S> {
    sink: S,
}

/// Where the registers are; these do not depend on who hears of them.
impl PowerControl<()> {
    /// The first port.
    pub const BASE: u16 = 0x604;
    /// The number of ports.
    pub const SIZE: u16 = 3;
    /// The sleep control register (ACPI 6.5, 4.8.3.7).
    pub const SLEEP_CONTROL: u16 = Self::BASE;
    /// The sleep status register.
    pub const SLEEP_STATUS: u16 = Self::BASE + 1;
    /// The reset register: not 0xCF9, which shares its dword with the PCI address register.
    pub const RESET: u16 = Self::BASE + 2;
}

impl<S: PowerSink> PowerControl<S> {
    /// Registers whose writes reach `sink`.
    pub fn new(sink: S) -> Self {
        Self { sink }
    }
}

impl<S: PowerSink> DevicePio for PowerControl<S> {
    /// Both sleep registers and the reset register read zero: never asleep, never reset.
    fn pio_read(&self, _base: PioAddress, _offset: PioAddressOffset, data: &mut [u8]) {
        data.fill(0);
    }

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let value = data.first().copied().unwrap_or(0);
        let asks_s5 = value & (SLEEP_ENABLE | SLEEP_TYPE) == SLEEP_ENABLE | SLEEP_TYPE_S5 << 2;
        match base.0.wrapping_add(offset) {
            PowerControl::SLEEP_CONTROL if asks_s5 => self.sink.request(PowerRequest::PowerOff),
            PowerControl::RESET if value == RESET_VALUE => self.sink.request(PowerRequest::Reset),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Requests(Mutex<Vec<PowerRequest>>);

    impl PowerSink for &Requests {
        fn request(&self, request: PowerRequest) {
            self.0.lock().unwrap().push(request);
        }
    }

    fn written(port: u16, value: u8) -> Vec<PowerRequest> {
        let requests = Requests::default();
        PowerControl::new(&requests).pio_write(PioAddress(port), 0, &[value]);
        requests.0.into_inner().unwrap()
    }

    #[test]
    fn s5_powers_off_and_other_sleep_types_do_not() {
        assert_eq!(written(PowerControl::SLEEP_CONTROL, 0x34), [PowerRequest::PowerOff]);
        for value in [0x14, 0x30, 0x00] {
            assert_eq!(written(PowerControl::SLEEP_CONTROL, value), [], "{value:#x}");
        }
    }

    #[test]
    fn the_reset_register_takes_its_value_only() {
        assert_eq!(written(PowerControl::RESET, RESET_VALUE), [PowerRequest::Reset]);
        assert_eq!(written(PowerControl::RESET, 0x02), []);
    }

    #[test]
    fn the_status_register_does_nothing_and_reads_zero() {
        let requests = Requests::default();
        let power = PowerControl::new(&requests);
        power.pio_write(PioAddress(PowerControl::SLEEP_CONTROL), 1, &[0x34]);
        let mut status = [0xff];
        power.pio_read(PioAddress(PowerControl::SLEEP_CONTROL), 1, &mut status);
        assert_eq!(status, [0]);
        assert!(requests.0.lock().unwrap().is_empty());
    }
}
