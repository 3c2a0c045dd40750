//! What a guest does: config space, BARs, the MSI-X table, interrupts mixed with resets, and failures among it.

use std::sync::Arc;

use vfio_passthrough::backend::IrqFlags;
use vfio_passthrough::model::{Fault, Faults, PciDevice};

use crate::input::Input;
use crate::oracle::Vm;

/// Devices of several shapes.
pub fn device(kind: u8, faults: &Arc<Faults>) -> PciDevice {
    let resize = if kind & 1 == 0 { IrqFlags::empty() } else { IrqFlags::NORESIZE };
    let flags = IrqFlags::EVENTFD | resize;
    let msi = [None, Some(0x0184), Some(0x0000), Some(0x010a)][usize::from(kind >> 1 & 3)];
    let device = match kind >> 3 & 1 {
        0 => PciDevice::nvme(faults.clone(), flags),
        _ => PciDevice::with_interrupts(
            faults.clone(),
            msi,
            Some((1 + u16::from(kind >> 4) * 5, flags)),
        ),
    };
    device.unwrap()
}

pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let faults = Arc::new(Faults::default());
    let device = Arc::new(device(input.u8(), &faults));
    let vm = Vm::new(faults.clone(), device.clone()).expect("an honest device is assigned");
    let place = input.u8();
    // As firmware leaves it.
    let _ = vm.function.config_write(0x10, &(0xe000_0000 | u32::from(place) << 20).to_le_bytes());
    let _ = vm.function.config_write(0x04, &[6, 0]);
    let mut failed = false;
    while !input.is_empty() {
        match input.u8() {
            0..=7 => device.raise(input.u8().into()).unwrap(),
            8 => device.assert_pin(input.u8() & 1 != 0).unwrap(),
            9 => {
                vm.guest.acknowledge_pin();
                device.resample().unwrap();
            }
            10 => drop(vm.guest.arrived()),
            11 => faults.strike(input.u8().into()..u64::from(input.u8()), Fault::Errno(libc::EIO)),
            12 => {
                vm.check_settled();
                failed = false;
            }
            _ => vm.access(&mut input),
        }
        // A slot that could not be taken away stays until it is tried again.
        failed |= !faults.struck().is_empty();
        if !failed {
            vm.check();
        }
    }
    vm.check_settled();
    vm.end();
}
