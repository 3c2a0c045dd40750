//! The serial port COM1: a 16550A that sends its output to a [`Write`].

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use thiserror::Error;
use vm_device::bus::{MmioAddress, MmioAddressOffset, PioAddress, PioAddressOffset};
use vm_device::{DeviceMmio, DevicePio};
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial as Uart, Trigger};
use vmm_sys_util::eventfd::EventFd;

/// Why the serial port could not receive input.
#[derive(Debug, Error)]
pub enum SerialError {
    /// A thread panicked during an access.
    #[error("the serial port is unusable because a thread panicked while it used it")]
    Poisoned,
    /// A write to the interrupt's eventfd failed.
    #[error("cannot signal the interrupt of the serial port: {0}")]
    Interrupt(String),
}

/// The eventfd of the interrupt line; an irqfd on it injects the interrupt.
struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = std::io::Error;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.write(1)
    }
}

/// Signals that the receive FIFO is empty after [`Serial::receive`] found it full.
struct Drained {
    is_awaited: AtomicBool,
    signal: Arc<EventFd>,
}

impl SerialEvents for Drained {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        if self.is_awaited.swap(false, Ordering::Relaxed) {
            // The write fails only if the counter is full; then the reader wakes up anyway.
            let _ = self.signal.write(1);
        }
    }
}

/// COM1, as a device on the port bus.
pub struct Serial<W: Write> {
    uart: Mutex<Uart<Interrupt, Drained, W>>,
}

impl<W: Write> Serial<W> {
    /// The first port.
    pub const BASE: u16 = 0x3f8;
    /// The number of ports.
    pub const SIZE: u16 = 8;
    /// COM1's GSI on a PC.
    pub const GSI: u32 = 4;

    /// A port that writes to `output` and signals `interrupt`. It signals `drained` when the guest
    /// has emptied a receive FIFO that [`Serial::receive`] found full.
    pub fn new(interrupt: EventFd, drained: Arc<EventFd>, output: W) -> Self {
        let drained = Drained { is_awaited: AtomicBool::new(false), signal: drained };
        Self { uart: Mutex::new(Uart::with_events(Interrupt(interrupt), drained, output)) }
    }

    /// Puts as much of `input` as fits into the receive FIFO, and returns the number of bytes.
    ///
    /// # Errors
    ///
    /// [`SerialError`], if a thread panicked in the port or the interrupt cannot be signalled.
    pub fn receive(&self, input: &[u8]) -> Result<usize, SerialError> {
        let mut uart = self.uart.lock().map_err(|_| SerialError::Poisoned)?;
        let fits = input.len().min(uart.fifo_capacity());
        uart.events().is_awaited.store(fits < input.len(), Ordering::Relaxed);
        match input.get(..fits) {
            Some(input) if fits > 0 => {
                uart.enqueue_raw_bytes(input).map_err(|e| SerialError::Interrupt(format!("{e:?}")))
            }
            _ => Ok(0),
        }
    }
}

fn register(offset: PioAddressOffset) -> u8 {
    let [register, _] = offset.to_le_bytes();
    register
}

/// The registers have one byte. KVM reports a string instruction as one wide access, so each byte
/// of a wide access is an access to its first port.
impl<W: Write> DevicePio for Serial<W> {
    fn pio_read(&self, _base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        match self.uart.lock() {
            Ok(mut uart) => data.fill_with(|| uart.read(register(offset))),
            Err(_) => data.fill(0xff),
        }
    }

    fn pio_write(&self, _base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        if let Ok(mut uart) = self.uart.lock() {
            // If the output fails, the byte is lost, as on an unplugged cable.
            data.iter().for_each(|byte| drop(uart.write(register(offset), *byte)));
        }
    }
}

/// The same registers in memory, one byte each. The others read as ones.
impl<W: Write> DeviceMmio for Serial<W> {
    fn mmio_read(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        match u16::try_from(offset) {
            Ok(offset) if offset < Serial::<W>::SIZE => self.pio_read(PioAddress(0), offset, data),
            _ => data.fill(0xff),
        }
    }

    fn mmio_write(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        match u16::try_from(offset) {
            Ok(offset) if offset < Serial::<W>::SIZE => self.pio_write(PioAddress(0), offset, data),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl Write for Output {
        fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(data)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    struct Port {
        serial: Serial<Output>,
        output: Output,
        interrupt: EventFd,
        drained: Arc<EventFd>,
    }

    fn port() -> Port {
        let output = Output::default();
        let [interrupt, drained] = [(), ()].map(|()| EventFd::new(EFD_NONBLOCK).unwrap());
        let drained = Arc::new(drained);
        let serial = Serial::new(interrupt.try_clone().unwrap(), drained.clone(), output.clone());
        Port { serial, output, interrupt, drained }
    }

    const BASE: PioAddress = PioAddress(0x3f8);
    const INTERRUPT_ENABLE: u16 = 1;

    #[test]
    fn writes_every_byte_of_a_string_instruction() {
        let port = port();
        port.serial.pio_write(BASE, 0, b"hello");
        assert_eq!(*port.output.0.lock().unwrap(), b"hello");
    }

    #[test]
    fn interrupts_for_input_and_returns_it_in_order() {
        let port = port();
        port.serial.pio_write(BASE, INTERRUPT_ENABLE, &[1]);
        assert_eq!(port.serial.receive(b"ab").unwrap(), 2);
        assert!(port.interrupt.read().is_ok());
        let mut data = [0];
        port.serial.pio_read(BASE, 0, &mut data);
        assert_eq!(data, *b"a");
        port.serial.pio_read(BASE, 0, &mut data);
        assert_eq!(data, *b"b");
    }

    #[test]
    fn signals_when_the_guest_has_emptied_a_full_fifo() {
        let port = port();
        let taken = port.serial.receive(&[b'x'; 200]).unwrap();
        assert!((1..200).contains(&taken));
        assert_eq!(port.serial.receive(b"y").unwrap(), 0);
        assert!(port.drained.read().is_err());
        (0..taken).for_each(|_| port.serial.pio_read(BASE, 0, &mut [0]));
        assert!(port.drained.read().is_ok());
    }

    #[test]
    fn signals_nothing_if_the_input_did_fit() {
        let port = port();
        port.serial.receive(b"a").unwrap();
        port.serial.pio_read(BASE, 0, &mut [0]);
        assert!(port.drained.read().is_err());
    }
}
