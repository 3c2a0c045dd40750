//! Two model functions on one bus.

use std::sync::Arc;

use devices::{DevFn, PciRoot};
use resources::{AddressRange, Layout};
use vfio_passthrough::backend::IrqFlags;
use vfio_passthrough::model::{Faults, Guest, PciDevice};
use vfio_passthrough::{BarIndex, PassthroughFunction, ResetPolicy};
use vm_device::DeviceMmio;
use vm_device::bus::MmioAddress;

use super::coalesced::CoalescedWrites;
use super::function::GuestFunction;
use super::functions::Functions;
use crate::counters::FunctionCounts;

/// Two model functions on a bus at the same address. BAR0 of each has 16 KiB, 8 KiB of which are
/// direct.
fn two_at(gpa: u32) -> (PciRoot, Guest) {
    let guest = Guest::new(Arc::default());
    let root = PciRoot::new();
    for address in ["01:00.0", "02:00.0"] {
        let device = PciDevice::nvme(Arc::new(Faults::default()), IrqFlags::EVENTFD).unwrap();
        let (address, policy) = (address.parse().unwrap(), ResetPolicy::Required);
        let function =
            PassthroughFunction::new(address, Arc::new(device), &guest.services(), policy).unwrap();
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
fn overlapping_functions_both_work_after_one_moves() {
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
fn a_function_whose_slot_was_refused_works_when_the_other_stops_decoding() {
    const GPA: u32 = 0xe000_0000;
    let (root, guest) = two_at(GPA);
    root.config_write(0, 0x04, &[0, 0]);
    assert_eq!(starts(&guest), [u64::from(GPA)], "the slot of the second function");
    let mut table = [0; 4];
    root.mmio_write(MmioAddress(0), u64::from(GPA) + 0x2000, &[0x10, 0, 0xe0, 0xfe]);
    root.mmio_read(MmioAddress(0), u64::from(GPA) + 0x2000, &mut table);
    assert_eq!(table, [0x10, 0, 0xe0, 0xfe], "the second one's MSI-X table");
}

/// Functions of NVMe devices, whose BAR0 has 16 KiB, on one guest.
fn functions(addresses: &[&str]) -> Functions {
    let guest = Guest::new(Arc::default());
    let function = |(slot, address): (usize, &&str)| {
        let device = PciDevice::nvme(Arc::new(Faults::default()), IrqFlags::EVENTFD).unwrap();
        let (address, policy) = (address.parse().unwrap(), ResetPolicy::Required);
        let services = guest.services();
        let function = PassthroughFunction::new(address, Arc::new(device), &services, policy);
        Ok((DevFn::of_slot(slot as u8 + 1).unwrap(), Arc::new(function.unwrap())))
    };
    Functions::make(addresses.iter().enumerate(), function).unwrap()
}

#[test]
fn a_device_that_comes_needs_room_beside_the_bars_of_the_others() {
    // A BAR of 16 KiB has whole pages of the host to itself: `resources` provides for the largest.
    const PLACE: u64 = if cfg!(target_arch = "aarch64") { 64 << 10 } else { 16 << 10 };
    let window = |places: u64| Layout {
        mmio64: AddressRange::new(0x1_0000_0000, places * PLACE),
        ..Layout::default()
    };
    let (present, new) = (functions(&["01:00.0"]), functions(&["02:00.0"]));
    assert!(present.check_room(&new, &window(2)).is_ok(), "neither has an address yet");
    let error = present.check_room(&new, &window(1)).unwrap_err().to_string();
    for part in [
        "no room in the guest's address space for BAR 0 of 000",
        "(16 KiB of 64-bit memory): the 64-bit window is full, the 32-bit window is full\n",
        "  start the guest with --hot-plug-windows 64=1M, or remove a device",
    ] {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
    let (_, function) = present.iter().next().unwrap();
    let place = |address| drop(function.place_bar(BarIndex::new(0).unwrap(), address).unwrap());
    place(0x1_0000_0000 + PLACE);
    assert!(present.check_room(&new, &window(2)).is_ok(), "the first place is free");
    place(0x1_0000_0000);
    assert!(present.check_room(&new, &window(2)).is_ok());
    assert!(present.check_room(&new, &window(1)).is_err());
    place(0x8000_0000);
    assert!(present.check_room(&new, &window(1)).is_ok(), "the guest moved it out of the window");
}
