//! Tests the guest's view of a device whose config space is given as bytes.

use proptest::prelude::*;

use super::*;
use crate::pci::regs::*;
use crate::pci::view::HostSupport;

/// Config space similar to an NVMe's: MSI (8 vectors, 64 bits) at 0x50, MSI-X at 0x60, PCI Express
/// at 0x80, PM at 0xc0; extended: SR-IOV (hidden) at 0x100, AER at 0x120, ATS (hidden) at 0x180.
fn device() -> Vec<u8> {
    let mut bytes = vec![0xa5; 0x1000];
    let mut put =
        |offset: usize, values: &[u8]| bytes[offset..offset + values.len()].copy_from_slice(values);
    put(0x00, &[0x86, 0x80, 0x45, 0x58, 0x07, 0x05, 0x10, 0x08, 2, 2, 8, 1, 16, 0, 0x80, 0]);
    put(0x10, &0xfebf_0004_u64.to_le_bytes());
    put(0x18, &0xfebe_0008_u32.to_le_bytes());
    put(0x1c, &0xc001_u32.to_le_bytes());
    put(0x20, &[0; 32]);
    put(0x34, &[0x50, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]);
    put(0x50, &[cap::MSI, 0x60, 0x85, 0x00]);
    put(0x60, &[cap::MSIX, 0x80, 64, 0x80, 0, 0x20, 0, 0, 0, 0x30, 0, 0]);
    put(0x80, &[cap::EXPRESS, 0xc0, 0x02, 0x00, 0, 0, 0, 0x10]);
    put(0xc0, &[cap::PM, 0, 3, 0]);
    put(0x100, &0x1201_0010_u32.to_le_bytes());
    put(0x120, &0x1802_0001_u32.to_le_bytes());
    put(0x180, &0x0001_000f_u32.to_le_bytes());
    bytes
}

fn view_of(bytes: &[u8]) -> ConfigSpace {
    let read = |offset: u16, data: &mut [u8]| {
        let start = usize::from(offset);
        data.copy_from_slice(&bytes[start..start + data.len()]);
        Ok(())
    };
    let host =
        HostSupport { regions: [0x4000, 0, 0x1000, 0x20, 0, 0, 0x1_0000], msi: 32, msix: 2048 };
    ConfigSpace::new("0000:01:00.0".parse().unwrap(), 0x1000, &host, read).unwrap()
}

fn view() -> ConfigSpace {
    view_of(&device())
}

/// The bytes that the guest reads if the device has the bytes `device`.
fn read(view: &ConfigSpace, device: &[u8], offset: u16, length: usize) -> u32 {
    let mut data = [0; 4];
    let start = usize::from(offset);
    if view.needs_device(offset, length) {
        data[..length].copy_from_slice(&device[start..start + length]);
    }
    view.overlay(offset, &mut data[..length]);
    u32::from_le_bytes(data)
}

fn capabilities(view: &ConfigSpace) -> Vec<u8> {
    let bytes = device();
    let first = read(view, &bytes, CAPABILITIES, 1) as u8;
    crate::pci::caps::standard(first, |offset| read(view, &bytes, offset, 2) as u16)
        .found
        .iter()
        .map(|found| found.id)
        .collect()
}

#[test]
fn the_identity_is_that_of_the_device_and_is_emulated() {
    let (view, bytes) = (view(), device());
    assert_eq!(read(&view, &bytes, VENDOR_ID, 4), 0x5845_8086);
    assert_eq!(read(&view, &bytes, HEADER_TYPE, 1), 0, "one function");
    let mut several = view.clone();
    several.set_multifunction();
    assert_eq!(read(&several, &bytes, HEADER_TYPE, 1), u32::from(MULTIFUNCTION));
    several.write(HEADER_TYPE, &[0]);
    several.reset();
    assert_eq!(read(&several, &bytes, HEADER_TYPE, 1), u32::from(MULTIFUNCTION), "after a reset");
    let without = view.clone().without_pin();
    assert_eq!((view.pin(), read(&view, &bytes, INTERRUPT_PIN, 1)), (1, 1));
    assert_eq!((without.pin(), read(&without, &bytes, INTERRUPT_PIN, 1)), (0, 0));
    for offset in (0..0x40).step_by(4).filter(|offset| *offset != COMMAND) {
        assert!(!view.needs_device(offset, 4), "{offset:#x}");
    }
    assert!(view.needs_device(STATUS, 2));
    assert_eq!(read(&view, &bytes, COMMAND, 2), 0, "nothing is decoded at power-on");
}

#[test]
fn equal_bytes_at_the_end_take_no_memory() {
    // The last capability of the device is at 0x180.
    let view = view();
    assert!(view.bytes.len() <= 0x184, "{:#x}", view.bytes.len());
    let mut last = [0; 8];
    view.overlay(0xffc, &mut last);
    assert_eq!(last, [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], "past the end");
}

#[test]
fn lists_skip_hidden_capabilities() {
    assert_eq!(capabilities(&view()), [cap::MSI, cap::MSIX, cap::EXPRESS, cap::PM]);
    let (view, bytes) = (view(), device());
    let found = crate::pci::caps::extended(|offset| read(&view, &bytes, offset, 4)).found;
    let list: Vec<_> = found.iter().map(|found| (found.id, found.offset)).collect();
    assert_eq!(list, [(ext::NULL, 0x100), (1, 0x120)]);
    assert_eq!(read(&view, &bytes, 0x108, 4), 0, "the body of a hidden capability");
}

#[test]
fn a_device_without_capabilities_has_no_list() {
    let mut bytes = device();
    bytes[usize::from(CAPABILITIES)] = 0;
    bytes[0x100..0x104].fill(0);
    let view = view_of(&bytes);
    assert_eq!(read(&view, &bytes, STATUS, 2) & u32::from(STATUS_CAPABILITIES), 0);
    assert_eq!((view.msix(), read(&view, &bytes, CAPABILITIES, 1)), (None, 0));
    let mut bytes = device();
    bytes[usize::from(STATUS)] &= !(STATUS_CAPABILITIES as u8);
    let view = view_of(&bytes);
    assert_eq!(read(&view, &bytes, STATUS, 2) & u32::from(STATUS_CAPABILITIES), 0);
    assert_eq!(
        (view.msix(), read(&view, &bytes, CAPABILITIES, 1)),
        (None, 0),
        "the pointer is ignored"
    );
}

#[test]
fn an_endpoint_becomes_a_root_complex_integrated_endpoint() {
    assert_eq!(read(&view(), &device(), 0x82, 2), 0x0092);
}

#[test]
fn a_guest_sizes_and_places_bars() {
    let mut view = view();
    let bytes = device();
    assert_eq!(read(&view, &bytes, 0x10, 4), 4, "not placed, and not at the host's address");
    view.write(0x10, &[0xff; 4]);
    view.write(0x14, &[0xff; 4]);
    view.write(0x1c, &[0xff; 4]);
    assert_eq!(read(&view, &bytes, 0x10, 4), 0xffff_c004);
    assert_eq!(read(&view, &bytes, 0x1c, 4), 0xffff_ffe1);
    view.write(0x10, &0x38_0000_4004_u64.to_le_bytes()[..4]);
    let written = view.write(0x14, &0x38_u32.to_le_bytes());
    assert_eq!(written, Written { forward: vec![], touched: Touched::BARS });
    let bar = view.bars()[0];
    assert_eq!(view.decoded(&bar), None, "memory decoding is off");
    assert_eq!(view.write(COMMAND, &[2, 0]).touched, Touched::COMMAND | Touched::BARS);
    assert_eq!(view.write(COMMAND, &[2, 0]).touched, Touched::BARS, "unchanged");
    assert_eq!(view.decoded(&bar), Some(0x38_0000_4000));
    view.set_in_low_power(true);
    assert_eq!(view.decoded(&bar), None, "in_low_power");
}

#[test]
fn a_guest_sizes_and_enables_the_rom() {
    let mut view = view();
    let rom = *view.bars().last().unwrap();
    assert_eq!(rom.kind, crate::pci::bar::BarKind::Rom);
    assert_eq!(read(&view, &device(), ROM, 4), 0);
    view.write(ROM, &0xffff_f800_u32.to_le_bytes());
    assert_eq!(read(&view, &device(), ROM, 4), 0xffff_0000);
    view.write(ROM, &0xe010_0000_u32.to_le_bytes());
    view.write(COMMAND, &[2, 0]);
    assert_eq!(view.decoded(&rom), None, "not enabled");
    view.write(ROM, &[1]);
    assert_eq!(view.decoded(&rom), Some(0xe010_0000));
}

#[test]
fn only_command_bits_that_exist_can_be_set() {
    let mut view = view();
    view.write(COMMAND, &[0xff, 0xff]);
    assert_eq!(view.command(), Command::all());
    view.reset();
    assert_eq!(view.command(), Command::empty());
}

#[test]
fn a_capability_that_runs_into_the_next_is_hidden() {
    // MSI with mask bits and 64 bits of address has 24 bytes.
    let control = [0x80, 0x01];
    for (id, size) in
        [(cap::MSI, 24), (cap::MSIX, 12), (cap::EXPRESS, 12), (cap::PM, 8), (cap::AF, 8), (0x09, 4)]
    {
        for space in (4..=size).step_by(4) {
            let mut bytes = device();
            let next = 0x50 + space;
            bytes[0x50..0x80].fill(0);
            bytes[0x50..0x54].copy_from_slice(&[id, next, control[0], control[1]]);
            bytes[usize::from(next)..][..3].copy_from_slice(&[0x09, 0, 8]);
            let view = view_of(&bytes);
            let first = read(&view, &bytes, CAPABILITIES, 1);
            let expected = if space < size { next } else { 0x50 };
            assert_eq!(first, u32::from(expected), "{id:#x} in {space} bytes");
        }
    }
}

#[test]
fn a_second_emulated_capability_with_the_same_id_is_hidden() {
    for id in [cap::PM, cap::MSI, cap::MSIX, cap::EXPRESS] {
        let mut bytes = device();
        bytes[0xc1] = 0xd0;
        bytes[0xd0..0xd8].copy_from_slice(&[id, 0, 0x80, 0, 1, 0, 0, 0]);
        let mut view = view_of(&bytes);
        let found =
            crate::pci::caps::standard(0x50, |offset| read(&view, &bytes, offset, 2) as u16).found;
        assert_eq!(found.len(), 4, "{id:#x}");
        assert_eq!(view.write(0xd4, &[0xff; 4]).forward, [], "{id:#x}");
    }
}

#[test]
fn an_flr_is_reported_and_not_forwarded() {
    let mut view = view();
    let written = view.write(0x88, &[0x10, 0x80]);
    assert!(written.touched.contains(Touched::RESET));
    assert_eq!(written.forward, [(0x88, vec![0x10, 0x00])]);
    assert!(!view.write(0x88, &[0x10, 0x00]).touched.contains(Touched::RESET));
}

#[test]
fn forwards_adjacent_bytes_in_one_write() {
    let mut view = view();
    assert_eq!(
        view.write(0xc4, &[3, 0]),
        Written { forward: vec![(0xc4, vec![3, 0])], touched: Touched::POWER }
    );
    assert_eq!(view.write(0x124, &[1, 2, 3, 4]).forward, [(0x124, vec![1, 2, 3, 4])]);
    assert_eq!(view.write(0x104, &[1, 2, 3, 4]).forward, [], "hidden");
}

#[test]
fn reads_past_the_end_are_all_ones_and_writes_are_ignored() {
    let mut view = view();
    let mut data = [0; 4];
    view.overlay(0xfffe, &mut data);
    assert_eq!(data, [0xff; 4]);
    assert_eq!(view.write(0xfffe, &[0; 4]), Written::default());
}

proptest! {
    /// A write of several bytes has the effect of writes of its single bytes.
    #[test]
    fn a_write_behaves_as_the_writes_of_its_bytes(
        offset in 0..0x1000_u16, data in prop::collection::vec(any::<u8>(), 1..9),
    ) {
        let (mut whole, mut parts) = (view(), view());
        let written = whole.write(offset, &data);
        let mut forward = Vec::new();
        for (at, value) in (offset..).zip(&data) {
            forward.extend(parts.write(at, &[*value]).forward);
        }
        let flat = |list: &[(u16, Vec<u8>)]| -> Vec<(u16, u8)> {
            list.iter().flat_map(|(at, run)| (*at..).zip(run.iter().copied())).collect()
        };
        prop_assert_eq!(whole, parts);
        prop_assert_eq!(flat(&written.forward), flat(&forward));
    }

    /// No write of a guest reaches the device's registers that are fully emulated.
    #[test]
    fn bars_msix_and_headers_are_never_forwarded(
        offset in 0..0x1000_u16, data in prop::collection::vec(any::<u8>(), 1..9),
    ) {
        let emulated = (0x08..0x40_u16).chain(0..0x06).chain(0x50..0x5e)
            .chain(0x60..0x6c).chain([0x80, 0x81, 0xc0, 0xc1]).chain(0x100..0x124);
        let emulated: Vec<u16> = emulated.collect();
        for (start, run) in view().write(offset, &data).forward {
            for at in (start..).take(run.len()) {
                prop_assert!(!emulated.contains(&at), "{:#x}", at);
            }
        }
    }

    /// Any bytes of a device give a view, and walks of the view end.
    #[test]
    fn any_device_has_a_view(bytes in prop::collection::vec(any::<u8>(), 4096)) {
        let view = view_of(&bytes);
        let first = read(&view, &bytes, CAPABILITIES, 1) as u8;
        crate::pci::caps::standard(first, |offset| read(&view, &bytes, offset, 2) as u16);
        crate::pci::caps::extended(|offset| read(&view, &bytes, offset, 4));
    }
}

/// The bytes that the guest reads in `range`, from a device with `express` at 0x80 and 0xa5 in
/// other bytes.
fn read_express(express: &[u8], next: u8, range: std::ops::Range<u16>) -> Vec<u8> {
    let mut bytes = device();
    bytes[0x80..0x80 + express.len()].copy_from_slice(express);
    bytes[0x81] = next;
    bytes[usize::from(next)..][..3].copy_from_slice(&[0x09, 0, 8]);
    let view = view_of(&bytes);
    range.map(|offset| read(&view, &bytes, offset, 1) as u8).collect()
}

#[test]
fn an_integrated_endpoint_has_no_link_registers() {
    let (link, link_2) = (0x8c..0xa4, 0xac..0xbc);
    for kind in [0x02, 0x12] {
        assert_eq!(read_express(&[0x10, 0, kind], 0xc0, link.clone()), [0; 0x18], "{kind:#x}");
        assert_eq!(read_express(&[0x10, 0, kind], 0xc0, link_2.clone()), [0; 0x10], "{kind:#x}");
        // ARI forwarding, LTR, 10-bit tags, OBFF and FRS of Device Capabilities 2 need a port, and
        // Device Control 2, which follows, enables them.
        let second = [0x85, 0xa5, 0xa1, 0x25, 0x85, 0x81, 0xa5, 0xa5];
        assert_eq!(read_express(&[0x10, 0, kind], 0xc0, 0xa4..0xac), second, "{kind:#x}");
    }
    // Version 1 ends after the link registers. Both versions end at the next capability.
    assert_eq!(
        read_express(&[0x10, 0, 0x01], 0xc0, 0x8c..0x96),
        [0, 0, 0, 0, 0, 0, 0, 0, 0xa5, 0xa5]
    );
    assert_eq!(read_express(&[0x10, 0, 0x02], 0x94, 0x92..0x98), [0, 0, 0x09, 0, 8, 0xa5]);
    // The registers of an endpoint that is integrated on the host are forwarded.
    assert_eq!(read_express(&[0x10, 0, 0x92], 0xc0, link), [0xa5; 0x18]);
}

#[test]
fn an_flr_has_an_effect_only_if_the_device_supports_it() {
    let mut bytes = device();
    let view_with = |bytes: &[u8]| {
        let mut view = view_of(bytes);
        view.write(0x89, &[0x80]).touched
    };
    assert_eq!(view_with(&bytes), Touched::RESET);
    bytes[0x87] = 0;
    assert_eq!(view_with(&bytes), Touched::empty());
    let mut view = view().without_flr();
    assert_eq!(view.write(0x89, &[0x80]).touched, Touched::empty());
    assert_eq!(read(&view, &device(), 0x87, 1), 0, "the capability bit reads as zero");
}

#[test]
fn each_extended_capability_that_depends_on_the_host_is_hidden() {
    let hidden = [0x000e_u32, 0x000f, 0x0010, 0x0013, 0x0015, 0x001b, 0x0024];
    for id in hidden {
        // In the middle of a list, at its head, and alone.
        for (first, second) in [(0x0001, id), (id, 0x0001), (id, 0)] {
            let mut bytes = device();
            let next = if second == 0 { 0 } else { 0x140 << 20 };
            bytes[0x100..0x104].copy_from_slice(&(next | 1 << 16 | first).to_le_bytes());
            bytes[0x140..0x144].copy_from_slice(&(1 << 16 | second).to_le_bytes());
            let view = view_of(&bytes);
            let found = crate::pci::caps::extended(|offset| read(&view, &bytes, offset, 4)).found;
            let shown: Vec<_> =
                found.iter().map(|found| found.id).filter(|id| *id != ext::NULL).collect();
            let expected = if second == 0 { vec![] } else { vec![1] };
            assert_eq!(shown, expected, "{first:#x}, {second:#x}");
            let body = if first == id { 0x104 } else { 0x144 };
            assert_eq!(read(&view, &bytes, body, 4), 0, "{id:#x}");
        }
    }
}

#[test]
fn docs_devices_md_has_the_table_of_the_header() {
    let code = include_str!("../view.rs").lines().filter_map(|line| line.strip_prefix("//! |"));
    let code: Vec<_> = code.collect();
    let devices = include_str!("../../../../docs/devices.md");
    let after = devices.split("\n### Header registers").nth(1).unwrap();
    let section = after.split("\n### ").next().unwrap();
    let shown = section.lines().filter_map(|line| line.strip_prefix('|'));
    assert_eq!(shown.collect::<Vec<_>>(), code);
    assert!(!code.is_empty());
}

mod interrupts;
mod naive;
