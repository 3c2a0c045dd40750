//! Two vCPUs write one function's config space, in orders that shuttle chooses.
//!
//! `RUSTFLAGS='--cfg shuttle' cargo test -p vmm --lib interleavings --target-dir target/shuttle`

use std::sync::{Arc, PoisonError};

use devices::PciFunction as _;
use shuttle::sync::Mutex;
use shuttle::thread;
use vfio_passthrough::backend::IrqFlags;
use vfio_passthrough::model::{Faults, Guest, PciDevice};
use vfio_passthrough::{PassthroughFunction, ResetPolicy};

use super::coalesced::Coalesce;
use super::function::GuestFunction;
use crate::counters::FunctionCounts;

/// MSI-X message control of the model's NVMe.
const MSIX_CONTROL: u16 = 0x42;
const ENABLED: u16 = 0x8000;
const ENABLED_AND_MASKED: u16 = 0xc000;
const BAR: u32 = 0xe000_0000;
const TABLE: (u64, u32) = (0xe000_2000, 65 * 16);

/// The currently coalesced ranges.
type Ranges = Arc<Mutex<Vec<(u64, u32)>>>;

struct Recorder(Ranges);

struct Recorded(Ranges, (u64, u32));

impl Coalesce for Recorder {
    fn coalesce(&self, start: u64, size: u32) -> Option<Box<dyn Send>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((start, size));
        Some(Box::new(Recorded(self.0.clone(), (start, size))))
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        let mut ranges = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ranges.retain(|range| *range != self.1);
    }
}

fn two_vcpus_write_msix_control() {
    let faults = Arc::new(Faults::default());
    let device = Arc::new(PciDevice::nvme(faults.clone(), IrqFlags::EVENTFD).unwrap());
    let (address, host) = ("01:00.0".parse().unwrap(), Guest::new(faults).services());
    let function = PassthroughFunction::new(address, device, &host, ResetPolicy::Required).unwrap();
    let ranges = Ranges::default();
    let recorder = Arc::new(Recorder(ranges.clone()));
    let function = GuestFunction::new(&Arc::new(function), recorder, &FunctionCounts::default());
    let function = Arc::new(function);
    function.config_write(0x10, &BAR.to_le_bytes());
    function.config_write(0x04, &[2, 0]);
    let vcpus = [ENABLED, ENABLED_AND_MASKED].map(|control| {
        let function = function.clone();
        thread::spawn(move || function.config_write(MSIX_CONTROL, &control.to_le_bytes()))
    });
    for vcpu in vcpus {
        let _ = vcpu.join().unwrap();
    }
    let mut control = [0; 2];
    function.config_read(MSIX_CONTROL, &mut control);
    let expected = match u16::from_le_bytes(control) & ENABLED_AND_MASKED {
        ENABLED => vec![],
        _ => vec![TABLE],
    };
    assert_eq!(*ranges.lock().unwrap(), expected, "MSI-X control {control:#x?}");
}

#[test]
fn never_coalesces_writes_to_an_active_msix_table() {
    shuttle::check_random(two_vcpus_write_msix_control, 2000);
    shuttle::check_pct(two_vcpus_write_msix_control, 2000, 3);
}
