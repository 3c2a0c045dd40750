//! Reset and power-off: the sleep registers of hardware-reduced ACPI and the reset register.
//!
//! Hardware-reduced ACPI (ACPI 6.5, 4.1) costs a guest the fewest exits: there is no PM timer, no
//! event block and no SCI to probe, and S5 is one write.

use std::sync::Mutex;

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};
use vmm_sys_util::eventfd::EventFd;

/// The sleep type that `_S5` in the DSDT names.
pub const SLEEP_TYPE_S5: u8 = 5;
/// The value that the FADT tells the guest to write to the reset register.
pub const RESET_VALUE: u8 = 0x06;

/// Bit 5 of the sleep control register: go (ACPI 6.5, 4.8.3.7).
const SLEEP_ENABLE: u8 = 1 << 5;
/// Bits 4:2 of the sleep control register: the sleep type.
const SLEEP_TYPE: u8 = 0b111 << 2;
/// Bit 2 of the reset register at 0xCF9: reset the CPU.
const RESET_CPU: u8 = 1 << 2;

/// What the guest asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerRequest {
    /// Sleep state S5.
    PowerOff,
    /// A reset.
    Reset,
}

/// The ports of reset and sleep. The first request is kept and signalled; later ones change nothing.
pub struct PowerControl {
    request: Mutex<Option<PowerRequest>>,
    signal: EventFd,
}

impl PowerControl {
    /// The sleep control register; the sleep status register follows it.
    pub const SLEEP_PORT: u16 = 0x604;
    /// The number of sleep ports.
    pub const SLEEP_PORTS: u16 = 2;
    /// The reset register, where PCs have it.
    pub const RESET_PORT: u16 = 0xcf9;

    /// Registers that write to `signal` when the guest has asked for something.
    pub fn new(signal: EventFd) -> Self {
        Self {
            request: Mutex::new(None),
            signal,
        }
    }

    /// What the guest has asked for so far.
    pub fn request(&self) -> Option<PowerRequest> {
        self.request.lock().map_or(None, |request| *request)
    }

    fn ask(&self, asked: PowerRequest) {
        if let Ok(mut request) = self.request.lock() {
            request.get_or_insert(asked);
        }
        // A full counter already wakes the reader.
        let _ = self.signal.write(1);
    }
}

impl DevicePio for PowerControl {
    /// Both sleep registers and the reset register read zero: never asleep, never reset.
    fn pio_read(&self, _base: PioAddress, _offset: PioAddressOffset, data: &mut [u8]) {
        data.fill(0);
    }

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let value = data.first().copied().unwrap_or(0);
        let asks_s5 = value & (SLEEP_ENABLE | SLEEP_TYPE) == SLEEP_ENABLE | SLEEP_TYPE_S5 << 2;
        match base.0.wrapping_add(offset) {
            Self::SLEEP_PORT if asks_s5 => self.ask(PowerRequest::PowerOff),
            Self::RESET_PORT if value & RESET_CPU != 0 => self.ask(PowerRequest::Reset),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    fn written(port: u16, value: u8) -> (Option<PowerRequest>, bool) {
        let signal = EventFd::new(EFD_NONBLOCK).unwrap();
        let power = PowerControl::new(signal.try_clone().unwrap());
        power.pio_write(PioAddress(port), 0, &[value]);
        (power.request(), signal.read().is_ok())
    }

    #[test]
    fn s5_powers_off_and_other_sleep_types_do_not() {
        let cases = [
            (0x34, Some(PowerRequest::PowerOff)),
            (0x14, None),
            (0x30, None),
            (0x00, None),
        ];
        for (value, expected) in cases {
            assert_eq!(
                written(PowerControl::SLEEP_PORT, value),
                (expected, expected.is_some()),
                "{value:#x}"
            );
        }
    }

    #[test]
    fn the_reset_register_needs_its_cpu_bit() {
        assert_eq!(
            written(PowerControl::RESET_PORT, RESET_VALUE),
            (Some(PowerRequest::Reset), true)
        );
        assert_eq!(written(PowerControl::RESET_PORT, 0x02), (None, false));
    }

    #[test]
    fn the_first_request_stands() {
        let power = PowerControl::new(EventFd::new(EFD_NONBLOCK).unwrap());
        power.pio_write(PioAddress(PowerControl::SLEEP_PORT), 0, &[0x34]);
        power.pio_write(PioAddress(PowerControl::RESET_PORT), 0, &[RESET_VALUE]);
        assert_eq!(power.request(), Some(PowerRequest::PowerOff));
    }
}
