//! Configuration mechanism #1 (PCI 3.0, 3.2.2.3.2): address at 0xCF8, data at 0xCFC.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

use super::PciRoot;

/// The ports 0xCF8 to 0xCFF.
///
/// The guest must serialize its accesses to this pair of registers, as on hardware.
pub struct ConfigPorts {
    root: Arc<PciRoot>,
    address: AtomicU32,
}

const ENABLE: u32 = 1 << 31;
const DATA: PioAddressOffset = 4;

impl ConfigPorts {
    /// The first port.
    pub const BASE: u16 = 0xcf8;
    /// The number of ports.
    pub const SIZE: u16 = 8;

    /// Configuration ports for the functions of `root`.
    pub fn new(root: Arc<PciRoot>) -> Self {
        Self { root, address: AtomicU32::new(0) }
    }

    /// The function and register of a data access at `offset`; `None` if the address register is
    /// disabled or selects another bus than 0.
    fn target(&self, offset: PioAddressOffset) -> Option<(u8, u16)> {
        let address = self.address.load(Ordering::Relaxed);
        let [register, devfn, bus, _] = address.to_le_bytes();
        let byte = offset.checked_sub(DATA)?;
        let enabled = address & ENABLE != 0 && bus == 0;
        enabled.then_some((devfn, u16::from(register & !3) | byte))
    }
}

impl DevicePio for ConfigPorts {
    fn pio_read(&self, _base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        if offset == 0 && data.len() == 4 {
            let address = self.address.load(Ordering::Relaxed);
            data.copy_from_slice(&address.to_le_bytes());
        } else if let Some((devfn, register)) = self.target(offset) {
            self.root.config_read(devfn, register, data);
        } else {
            data.fill(0xff);
        }
    }

    /// Only a dword write sets the address register. Narrower writes address other devices at the
    /// same ports, such as 0xCF9.
    fn pio_write(&self, _base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        if offset == 0 {
            if let Ok(address) = data.try_into() {
                self.address.store(u32::from_le_bytes(address), Ordering::Relaxed);
            }
        } else if let Some((devfn, register)) = self.target(offset) {
            self.root.config_write(devfn, register, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::DevFn;
    use super::super::root::tests::TestFunction;
    use super::*;

    fn ports() -> (ConfigPorts, Arc<TestFunction>) {
        let root = PciRoot::new();
        let function = TestFunction::at(0, 0);
        root.insert(DevFn::of_slot(3).unwrap(), function.clone()).unwrap();
        (ConfigPorts::new(Arc::new(root)), function)
    }

    const BASE: PioAddress = PioAddress(ConfigPorts::BASE);

    #[test]
    fn accesses_data_at_the_address_written_before() {
        let (ports, function) = ports();
        ports.pio_write(BASE, 0, &(ENABLE | 3 << 11 | 0x10).to_le_bytes());
        ports.pio_write(BASE, 6, &[1, 2]);
        assert_eq!(*function.writes.lock().unwrap(), [(0x12, vec![1, 2])]);
        let mut data = [0; 4];
        ports.pio_read(BASE, 4, &mut data);
        assert_eq!(data, [0x10, 0x11, 0x12, 0x13]);
    }

    #[test]
    fn address_reads_back_and_ignores_narrow_writes() {
        let (ports, _) = ports();
        ports.pio_write(BASE, 0, &0x8000_0000_u32.to_le_bytes());
        ports.pio_write(BASE, 0, &[0x55]);
        ports.pio_write(BASE, 3, &[1]);
        let mut data = [0; 4];
        ports.pio_read(BASE, 0, &mut data);
        assert_eq!(u32::from_le_bytes(data), 0x8000_0000);
    }

    #[test]
    fn reads_all_ones_while_disabled_and_on_other_buses() {
        let (ports, function) = ports();
        for address in [3 << 11, ENABLE | 1 << 16 | 3 << 11] {
            ports.pio_write(BASE, 0, &u32::to_le_bytes(address));
            ports.pio_write(BASE, 4, &[0; 4]);
            let mut data = [0; 4];
            ports.pio_read(BASE, 4, &mut data);
            assert_eq!(data, [0xff; 4]);
        }
        assert!(function.writes.lock().unwrap().is_empty());
    }
}
