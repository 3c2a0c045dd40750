//! Reset and power-off: the sleep registers of hardware-reduced ACPI and the reset register.
//!
//! Hardware-reduced ACPI (ACPI 6.5, 4.1) costs a guest the fewest exits: it has no PM timer, no
//! event block and no SCI, and S5 is one write.

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

/// The value of the sleep type field for S5, as `_S5` in the DSDT declares it.
pub const SLEEP_TYPE_S5: u8 = 5;
/// The value that resets the guest when written to the reset register; the FADT declares it.
pub const RESET_VALUE: u8 = 0x01;

/// Bit 5 of the sleep control register: enter the sleep state (ACPI 6.5, 4.8.3.7).
const SLEEP_ENABLE: u8 = 1 << 5;
/// Bits 4:2 of the sleep control register: the sleep type.
const SLEEP_TYPE: u8 = 0b111 << 2;

/// A guest's request to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerRequest {
    /// The guest entered sleep state S5.
    PowerOff,
    /// The guest wrote the reset register.
    Reset,
}

/// Receives the guest's power requests.
pub trait PowerSink: Send + Sync {
    /// Handles one request. The guest may make several before the VMM stops it.
    fn request(&self, request: PowerRequest);
}

/// The sleep and reset registers, as a device on the port bus.
pub struct PowerControl<S> {
    sink: S,
}

/// Port numbers, which do not depend on the sink.
impl PowerControl<()> {
    /// The first port.
    pub const BASE: u16 = 0x604;
    /// The number of ports.
    pub const SIZE: u16 = 3;
    /// The sleep control register (ACPI 6.5, 4.8.3.7).
    pub const SLEEP_CONTROL: u16 = Self::BASE;
    /// The sleep status register.
    pub const SLEEP_STATUS: u16 = Self::BASE + 1;
    /// The reset register. It is not at 0xCF9, because that is within the PCI address register.
    pub const RESET: u16 = Self::BASE + 2;
}

impl<S: PowerSink> PowerControl<S> {
    /// Registers that pass requests to `sink`.
    pub fn new(sink: S) -> Self {
        Self { sink }
    }
}

impl<S: PowerSink> DevicePio for PowerControl<S> {
    /// All registers read zero: no sleep or reset is in progress.
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
    fn only_sleep_type_s5_powers_off() {
        assert_eq!(written(PowerControl::SLEEP_CONTROL, 0x34), [PowerRequest::PowerOff]);
        for value in [0x14, 0x30, 0x00] {
            assert_eq!(written(PowerControl::SLEEP_CONTROL, value), [], "{value:#x}");
        }
    }

    #[test]
    fn only_the_reset_value_resets() {
        assert_eq!(written(PowerControl::RESET, RESET_VALUE), [PowerRequest::Reset]);
        assert_eq!(written(PowerControl::RESET, 0x02), []);
    }

    #[test]
    fn status_register_ignores_writes_and_reads_zero() {
        let requests = Requests::default();
        let power = PowerControl::new(&requests);
        power.pio_write(PioAddress(PowerControl::SLEEP_CONTROL), 1, &[0x34]);
        let mut status = [0xff];
        power.pio_read(PioAddress(PowerControl::SLEEP_CONTROL), 1, &mut status);
        assert_eq!(status, [0]);
        assert!(requests.0.lock().unwrap().is_empty());
    }
}
