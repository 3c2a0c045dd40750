//! Configuration access through memory (PCI Express 6.0, 7.2.2). Each access is one exit.

use std::sync::Arc;

use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};

use super::PciRoot;

/// The ECAM window of bus 0.
pub struct Ecam {
    root: Arc<PciRoot>,
}

impl Ecam {
    /// Bytes of one bus: 256 functions of 4 KiB.
    pub const SIZE: u64 = 1 << 20;

    /// An ECAM window onto the functions of `root`.
    pub fn new(root: Arc<PciRoot>) -> Self {
        Self { root }
    }
}

/// Bits 19:12 of an ECAM offset are the function, bits 11:0 the register; other buses do not exist.
fn target(offset: MmioAddressOffset) -> Option<(u8, u16)> {
    let devfn = u8::try_from(offset >> 12).ok()?;
    let register = u16::try_from(offset & 0xfff).ok()?;
    Some((devfn, register))
}

impl DeviceMmio for Ecam {
    fn mmio_read(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        match target(offset) {
            Some((devfn, register)) => self.root.config_read(devfn, register, data),
            None => data.fill(0xff),
        }
    }

    fn mmio_write(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        if let Some((devfn, register)) = target(offset) {
            self.root.config_write(devfn, register, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::DevFn;
    use super::super::root::tests::TestFunction;
    use super::*;

    #[test]
    fn selects_function_and_register_by_the_offset() {
        let root = PciRoot::new();
        let function = TestFunction::at(0, 0);
        root.insert(DevFn::of_slot(5).unwrap(), function.clone()).unwrap();
        let ecam = Ecam::new(Arc::new(root));
        ecam.mmio_write(MmioAddress(0xe000_0000), (5 << 15) + 0xffc, &[1, 2, 3, 4]);
        ecam.mmio_write(MmioAddress(0xe000_0000), Ecam::SIZE + (5 << 15), &[9]);
        assert_eq!(*function.writes.lock().unwrap(), [(0xffc, vec![1, 2, 3, 4])]);
    }

    #[test]
    fn reads_all_ones_beyond_bus_0() {
        let ecam = Ecam::new(Arc::new(PciRoot::new()));
        let mut data = [0; 4];
        ecam.mmio_read(MmioAddress(0), Ecam::SIZE, &mut data);
        assert_eq!(data, [0xff; 4]);
    }
}
