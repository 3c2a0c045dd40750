//! Two functions of the model on the bus.

use std::sync::Arc;

use devices::PciRoot;
use vfio_passthrough::backend::IrqFlags;
use vfio_passthrough::model::{Faults, Guest, PciDevice};
use vfio_passthrough::{PassthroughFunction, ResetPolicy};
use vm_device::DeviceMmio;
use vm_device::bus::MmioAddress;

use super::coalesced::CoalescedWrites;
use super::function::GuestFunction;
use crate::counters::FunctionCounts;

/// Two functions of the model on a bus, with 16 KiB in BAR0 each, of which 8 KiB are direct, at the
/// same place.
fn two_at(gpa: u32) -> (PciRoot, Guest) {
    let guest = Guest::new(Arc::default());
    let mut root = PciRoot::new();
    for address in ["01:00.0", "02:00.0"] {
        let device = PciDevice::nvme(Arc::new(Faults::default()), IrqFlags::EVENTFD).unwrap();
        let (address, policy) = (address.parse().unwrap(), ResetPolicy::Required);
        let function =
            PassthroughFunction::new(address, Arc::new(device), &guest.host(), policy).unwrap();
        let function = GuestFunction::new(
            &Arc::new(function),
            Arc::new(CoalescedWrites::default()),
            &FunctionCounts::default(),
        );
        let slot = root.push(Arc::new(function)).unwrap();
        root.config_write(slot << 3, 0x10, &gpa.to_le_bytes());
        root.config_write(slot << 3, 0x04, &[2, 0]);
    }
    (root, guest)
}

fn starts(guest: &Guest) -> Vec<u64> {
    guest.slots().iter().map(|slot| slot.start()).collect()
}

#[test]
fn functions_that_overlap_both_work_when_they_have_parted() {
    const GPA: u32 = 0xe000_0000;
    for moved in [0_u8, 1] {
        let (root, guest) = two_at(GPA);
        assert_eq!(starts(&guest), [u64::from(GPA)], "the second one is refused");
        root.config_write(moved << 3, 0x10, &(GPA + 0x10_0000).to_le_bytes());
        assert_eq!(
            starts(&guest),
            [u64::from(GPA), u64::from(GPA) + 0x10_0000],
            "slot {moved} moved"
        );
    }
}

#[test]
fn a_function_that_was_refused_a_place_answers_when_no_other_does() {
    const GPA: u32 = 0xe000_0000;
    let (root, guest) = two_at(GPA);
    root.config_write(0, 0x04, &[0, 0]);
    assert_eq!(
        starts(&guest),
        [u64::from(GPA)],
        "the second one's, when the first does not decode"
    );
    let mut table = [0; 4];
    root.mmio_write(MmioAddress(0), u64::from(GPA) + 0x2000, &[0x10, 0, 0xe0, 0xfe]);
    root.mmio_read(MmioAddress(0), u64::from(GPA) + 0x2000, &mut table);
    assert_eq!(table, [0x10, 0, 0xe0, 0xfe], "the second one's MSI-X table");
}
