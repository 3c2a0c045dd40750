//! Tests of every kind of BAR: a guest sizes it, places it, decodes it and reads it.

use super::*;
use vfio_passthrough::BarKind::{Io, Memory32, Memory64};
use vfio_passthrough::backend::Device as _;
use vfio_passthrough::host::HostMemory as _;
use vfio_passthrough::{BarKind, Space};

/// A BAR of the host, and the guest's expected view of it.
struct Case {
    name: &'static str,
    /// The index, the register, and the size of the region.
    host: (usize, u32, u64),
    /// The values of the register and of the next one after a write of all ones.
    sized: [u32; 2],
    /// The values that place the BAR.
    place: [u32; 2],
    kind: Option<BarKind>,
    /// The start and the size of the memory slot then.
    slot: Option<(u64, u64)>,
}

const LOW: u32 = 0xe000_0000;
const ONES: u32 = u32::MAX;

#[rustfmt::skip]
const CASES: [Case; 10] = [
    Case { name: "32 bits", host: (0, 0xfebf_0000, 0x4000),
        sized: [0xffff_c000, 0], place: [LOW, 0],
        kind: Some(Memory32), slot: Some((0xe000_0000, 0x4000)) },
    Case { name: "32 bits, prefetchable", host: (1, 8, 0x4000),
        sized: [0xffff_c008, 0], place: [LOW, 0],
        kind: Some(Memory32), slot: Some((0xe000_0000, 0x4000)) },
    Case { name: "64 bits", host: (0, 4, 0x4000), sized: [0xffff_c004, ONES], place: [LOW, 0x38],
        kind: Some(Memory64), slot: Some((0x38_e000_0000, 0x4000)) },
    Case { name: "64 bits, prefetchable, at index 4", host: (4, 0xc, 1 << 33),
        sized: [0xc, 0xffff_fffe],
        place: [0, 0x38], kind: Some(Memory64), slot: Some((0x38_0000_0000, 1 << 33)) },
    Case { name: "BAR5, which has no upper half", host: (5, 4, 0x1000), sized: [0xffff_f000, 0],
        place: [LOW, 0], kind: Some(Memory32), slot: Some((0xe000_0000, 0x1000)) },
    Case { name: "no power of two", host: (0, 0, 0x3000), sized: [0xffff_c000, 0], place: [LOW, 0],
        kind: Some(Memory32), slot: Some((0xe000_0000, 0x3000)) },
    Case { name: "less than a page", host: (0, 0, 0x800),
        sized: [0xffff_f800, 0], place: [LOW + 0x800, 0], kind: Some(Memory32), slot: None },
    Case { name: "I/O ports", host: (2, 0xc001, 0x20), sized: [0xffff_ffe1, 0], place: [0xc000, 0],
        kind: Some(Io), slot: None },
    Case { name: "zero size", host: (0, 4, 0),
        sized: [0, 0], place: [LOW, 0x38], kind: None, slot: None },
    Case { name: "more than 32 bits can address", host: (0, 0, 1 << 33),
        sized: [0, 0], place: [LOW, 0], kind: None, slot: None },
];

impl Case {
    fn setup(&self) -> Setup {
        let (mut registers, mut sizes) = ([0; 6], [0; 6]);
        let (index, register, size) = self.host;
        registers[index] = register;
        sizes[index] = size;
        Setup::new(config_of(registers, &[]), &sizes)
    }

    /// The config offsets of the register and of the next BAR register.
    fn offsets(&self) -> impl Iterator<Item = u16> {
        let first = 0x10 + 4 * self.host.0 as u16;
        [first, first + 4].into_iter().filter(|offset| *offset < 0x28)
    }
}

#[test]
fn a_guest_sizes_every_kind_of_bar() {
    for case in CASES {
        let setup = case.setup();
        let sized: Vec<u32> = case
            .offsets()
            .map(|offset| {
                setup.write32(offset, u32::MAX);
                setup.read32(offset)
            })
            .collect();
        assert_eq!(sized, case.sized[..sized.len()], "{}", case.name);
        let kinds: Vec<_> = setup.function.bars().iter().map(|bar| bar.kind).collect();
        assert_eq!(kinds, Vec::from_iter(case.kind), "{}", case.name);
    }
}

#[test]
fn a_guest_places_and_removes_every_kind_of_bar() {
    for case in CASES {
        let setup = case.setup();
        setup.write16(COMMAND, 3);
        for (offset, value) in case.offsets().zip(case.place) {
            setup.write32(offset, value);
        }
        let slot = case.slot.map(|(start, size)| range(start, size));
        assert_eq!(setup.guest.slots(), Vec::from_iter(slot), "{}", case.name);
        let space = if case.kind == Some(BarKind::Io) { Space::Io } else { Space::Memory };
        let upper = if case.kind == Some(BarKind::Memory64) { case.place[1] } else { 0 };
        let base = u64::from(upper) << 32 | u64::from(case.place[0]);
        let expected = case.kind.map(|_| (BarIndex::new(case.host.0 as u8).unwrap(), 4));
        assert_eq!(setup.function.decode(space, base + 4), expected, "{}", case.name);
        setup.write16(COMMAND, 0);
        assert_eq!(setup.guest.slots(), [], "{}", case.name);
        assert_eq!(setup.function.decode(space, base + 4), None, "{}", case.name);
    }
}

#[test]
fn forwards_accesses_outside_of_slots_to_the_device() {
    for case in CASES.iter().filter(|case| case.kind.is_some()) {
        let setup = case.setup();
        let bar = BarIndex::new(case.host.0 as u8).unwrap();
        setup.function.bar_write(bar, 8, &[1, 2, 3, 4]);
        assert_eq!(setup.bar_read32(case.host.0 as u8, 8), 0x0403_0201, "{}", case.name);
    }
}

#[test]
fn ignores_a_region_for_the_upper_half_of_a_bar() {
    // VFIO has no region for an upper half. This device reports one.
    let setup = Setup::new(config_of([4, 0, 0, 0, 0, 0], &[]), &[0x4000, 0x1000]);
    let found: Vec<_> =
        setup.function.bars().iter().map(|bar| (bar.index.number(), bar.kind)).collect();
    assert_eq!(found, [(0, BarKind::Memory64)]);
}

#[test]
fn reads_past_a_region_return_all_ones() {
    let setup = Setup::new(config_of([0; 6], &[]), &[0x3000]);
    assert_eq!(setup.bar_read32(0, 0x3000), u32::MAX);
    assert_eq!(setup.bar_read32(1, 0), u32::MAX, "no such BAR");
}

#[test]
fn sizes_enables_and_reads_a_rom() {
    let setup = Setup::new(config_of([0; 6], &[]), &[0, 0, 0, 0, 0, 0, 0x1_0000]);
    setup.write32(0x30, 0xffff_f800);
    assert_eq!(setup.read32(0x30), 0xffff_0000);
    setup.write16(COMMAND, 2);
    setup.write32(0x30, 0xe000_0000);
    assert_eq!(setup.function.decode(Space::Memory, 0xe000_0000), None, "not enabled");
    setup.write32(0x30, 0xe000_0001);
    assert_eq!(setup.function.decode(Space::Memory, 0xe000_0004), Some((BarIndex::ROM, 4)));
    assert_eq!(setup.guest.slots(), [], "VFIO does not map this ROM");
    let before = setup.faults.made(Call::Read);
    assert_eq!(setup.bar_read32(6, 0), 0, "the model's image");
    assert_eq!(setup.bar_read32(6, 0xfffc), 0);
    assert_eq!(setup.bar_read32(6, 0xfffe), u32::MAX, "past the end");
    assert_eq!(setup.faults.made(Call::Read), before + 1, "the image is read once");
    let before = setup.faults.made(Call::Write);
    setup.function.bar_write(BarIndex::ROM, 0, &[1]);
    assert_eq!(setup.faults.made(Call::Write), before, "read-only");
}

#[test]
fn asks_once_for_a_rom_that_cannot_be_read() {
    for fault in [Fault::Errno(libc::EIO), Fault::Errno(libc::ENOMEM), Fault::Short(0x100)] {
        let setup = Setup::new(config_of([0; 6], &[]), &[0, 0, 0, 0, 0, 0, 0x1_0000]);
        setup.write16(COMMAND, 2);
        setup.write32(0x30, 0xe000_0001);
        let before = setup.faults.made(Call::Read);
        setup.faults.inject(0..1, fault);
        let (found, lines) = logged(|| [0, 0, 0x100].map(|at| setup.bar_read32(6, at)));
        assert_eq!((found, lines), ([u32::MAX; 3], 1), "{fault:?}");
        assert_eq!(setup.faults.made(Call::Read), before + 1, "{fault:?}");
    }
}

#[test]
fn hides_a_rom_of_another_vendor() {
    const START: [u8; 4] = [0x55, 0xaa, 4, 0];
    for (vendor, expected) in [(0x1b36_u16, u32::from_le_bytes(START)), (0x1002, u32::MAX)] {
        let setup = Setup::of(config_of([0; 6], &[]), &[0, 0, 0, 0, 0, 0, 0x1000], |device| {
            device.with_region(ROM_REGION, |region| region.flags |= RegionFlags::MMAP)
        });
        let mut rom = START.to_vec();
        rom.resize(0x1c, 0);
        rom[0x18] = 0x1c;
        rom.extend(b"PCIR");
        rom.extend(vendor.to_le_bytes());
        fill(&setup.device, &rom);
        setup.write16(COMMAND, 2);
        setup.write32(0x30, 0xe000_0001);
        let (found, lines) = logged(|| [(); 2].map(|()| setup.bar_read32(6, 0)));
        assert_eq!((found, lines), ([expected; 2], usize::from(expected == u32::MAX)));
    }
}

/// Writes the start of a device's ROM.
fn fill(device: &Arc<PciDevice>, content: &[u8]) {
    let region = device.region(ROM_REGION).unwrap();
    let page = device.clone().mmap(&region, range(0, 0x1000)).unwrap();
    assert!(content.len() <= 0x1000);
    // SAFETY: the mapping has 0x1000 bytes, and nothing else accesses them.
    unsafe { page.host_address().copy_from(content.as_ptr(), content.len()) };
}

#[test]
fn places_a_mappable_rom_while_it_is_enabled() {
    let sizes = [0, 0, 0, 0, 0, 0, 0x1_0000];
    let setup = Setup::of(config_of([0; 6], &[]), &sizes, |device| {
        device.with_region(ROM_REGION, |region| region.flags |= RegionFlags::MMAP)
    });
    setup.write16(COMMAND, 2);
    setup.write32(0x30, 0xe000_0001);
    assert_eq!(setup.guest.slots(), [range(0xe000_0000, 0x1_0000)]);
    setup.write32(0x30, 0xe000_0000);
    assert_eq!(setup.guest.slots(), []);
}

#[test]
fn a_missing_rom_has_a_zero_register_and_reads_as_all_ones() {
    let setup = Setup::new(config_of([0; 6], &[(0x30, &[1, 0, 0, 0xfe])]), &[]);
    setup.write32(0x30, u32::MAX);
    assert_eq!(setup.read32(0x30), 0);
    assert_eq!(setup.bar_read32(6, 0), u32::MAX);
}

#[test]
fn places_mappable_areas_and_traps_the_rest() {
    let areas = vec![range(0, 0x1000), range(0x2000, 0x1000), range(0x6000, 0x2000)];
    let setup = Setup::of(config_of([0; 6], &[]), &[0x8000], |device| {
        device.with_region(0, |region| region.sparse = Some(areas.clone()))
    });
    setup.write32(0x10, 0xe000_0000);
    setup.write16(COMMAND, 2);
    let placed: Vec<_> =
        areas.iter().map(|area| range(0xe000_0000 + area.start(), area.size())).collect();
    assert_eq!(setup.guest.slots(), placed);
    assert_eq!(
        setup.function.decode(Space::Memory, 0xe000_1000),
        Some((BarIndex::new(0).unwrap(), 0x1000))
    );
}

#[test]
fn traps_only_the_area_whose_mmap_failed() {
    let faults = Arc::new(Faults::default());
    faults.fail(Call::Mmap, 0, libc::ENOMEM);
    let policy = ResetPolicy::Required;
    let setup =
        Setup::assign(&faults, config_of([0; 6], &[]), &[0x1000, 0x1000], |device| device, policy);
    let setup = setup.unwrap();
    setup.write32(0x10, 0xe000_0000);
    setup.write32(0x14, 0xe100_0000);
    setup.write16(COMMAND, 2);
    assert_eq!(setup.guest.slots(), [range(0xe100_0000, 0x1000)]);
    assert_eq!(setup.bar_read32(0, 0), 0, "through the device");
}
