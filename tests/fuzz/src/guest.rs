//! Target `guest`: a guest accesses config space, BARs and the MSI-X table, the device raises
//! interrupts, and calls fail.

use std::sync::Arc;

use vfio_passthrough::backend::IrqFlags;
use vfio_passthrough::model::{Fault, Faults, PciDevice};

use crate::input::Input;
use crate::oracle::Vm;

/// A device of the model: `kind` selects its MSI and MSI-X capabilities.
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
    let vm =
        Vm::new(faults.clone(), device.clone()).expect("a device of the model can be assigned");
    let place = input.u8();
    // Place BAR0 and turn decoding on, as firmware does.
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
            11 => faults.inject(input.u8().into()..u64::from(input.u8()), Fault::Errno(libc::EIO)),
            12 => {
                vm.check_idempotence();
                failed = false;
            }
            _ => vm.access(&mut input),
        }
        // After an injected failure, a slot whose removal failed may stay until the next retry.
        failed |= !faults.failed().is_empty();
        if !failed {
            vm.check();
        }
    }
    vm.check_idempotence();
    vm.end();
}
