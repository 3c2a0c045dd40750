//! Each capability ID: the table in the docs, the table in the code, and a device that has it.

use vfio_passthrough::pci::capability_table::{EXTENDED, Kind, Row, STANDARD, extended, standard};

use super::*;

/// A register of a capability: the power state and the FLR bits are zero in it.
const REGISTER: u32 = 0x1010_1000;
/// Vendor-Specific, which is forwarded.
const VENDOR: u8 = 0x09;
/// VSEC, which is forwarded.
const VSEC: u16 = 0x000b;

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Emulated => "emulated",
        Kind::Forwarded => "forwarded",
        Kind::Hidden => "hidden",
    }
}

fn cells(row: &Row, digits: usize) -> Vec<String> {
    let id = format!("0x{:0digits$x}", row.id);
    vec![id, row.name.to_owned(), word(row.kind).to_owned()]
}

#[test]
fn docs_devices_md_has_the_rows_of_the_code() {
    let reserved = |ids: &str| vec![ids.to_owned(), "reserved".to_owned(), "hidden".to_owned()];
    let expected: Vec<_> = STANDARD
        .iter()
        .map(|row| cells(row, 2))
        .chain([reserved("0x16-0xff")])
        .chain(EXTENDED.iter().map(|row| cells(row, 4)))
        .chain([reserved("0x003b-0xffff")])
        .collect();
    let rows = rows_of("Capabilities");
    let shown: Vec<Vec<&str>> = rows.iter().filter(|row| row[0] != "id").cloned().collect();
    assert_eq!(shown.iter().map(|row| row[..3].to_vec()).collect::<Vec<_>>(), expected);
    assert!(shown.iter().all(|row| row.len() == 4 && !row[3].is_empty()), "each row has a reason");
}

#[test]
fn the_tables_have_each_id_once_and_in_order() {
    assert!(STANDARD.iter().zip(0..).all(|(row, id)| row.id == id));
    assert!(EXTENDED.iter().zip(0..).all(|(row, id)| row.id == id));
    let name = |id: usize| EXTENDED[id].name;
    assert_eq!(
        [name(0x10), name(0x2d), name(0x36)],
        ["SR-IOV", "Shadow Functions", "MMIO Register Block Locator",]
    );
}

/// A device with this capability, whose registers are valid, before one of a vendor.
fn with_standard(id: u8) -> Seen {
    let mut odd = Odd::plain();
    odd.irqs = [1, 32, 2048];
    odd.put(0x34, &[FIRST as u8]);
    (FIRST + 4..0x80).step_by(4).for_each(|offset| odd.put32(offset, REGISTER));
    odd.put(0x80, &[VENDOR, 0, 0, 0]);
    odd.put(FIRST, &[id, 0x80, if id == 0x10 { 2 } else { 3 }, 0]);
    if id == 0x11 {
        odd.put32(FIRST + 4, TABLE);
        odd.put32(FIRST + 8, PBA);
    }
    odd.assign().unwrap()
}

#[test]
fn a_guest_sees_each_capability_as_its_row_says() {
    // A header of 0xff ends the list: nothing answers there.
    for id in 0..0xff_u8 {
        let (seen, lines) = logged(|| with_standard(id));
        assert_eq!(lines, 0, "{id:#x}");
        let kind = standard(id);
        let expected = if kind == Kind::Hidden { vec![VENDOR] } else { vec![id, VENDOR] };
        assert_eq!(seen.list(), expected, "{id:#x}");
        check_register(&seen, kind, FIRST + 4, &format!("{id:#x}"));
    }
}

fn check_register(seen: &Seen, kind: Kind, offset: usize, name: &str) {
    let (shown, real) = (seen.u32(offset), u32::from_le_bytes(seen.real(offset)));
    match kind {
        Kind::Hidden => assert_eq!(shown, 0, "{name}"),
        Kind::Forwarded => assert_eq!(shown, real, "{name}"),
        Kind::Emulated => {}
    }
    seen.write(offset, &0x1030_1000_u32.to_le_bytes());
    let now = u32::from_le_bytes(seen.real(offset));
    assert_eq!(now == real, kind != Kind::Forwarded, "{name}: {now:#x}");
}

/// A device with these extended capabilities at 0x100 and 0x180, whose registers are the same.
fn with_extended(ids: [u16; 2], register: u32) -> Seen {
    let mut odd = Odd::plain();
    (0x104..0x200).step_by(4).for_each(|offset| odd.put32(offset, register));
    odd.put32(0x100, 0x1801_0000 | u32::from(ids[0]));
    odd.put32(0x180, 0x0001_0000 | u32::from(ids[1]));
    odd.assign().unwrap()
}

#[test]
fn a_guest_sees_each_extended_capability_as_its_row_says() {
    let reserved = [0x7fff, 0xfffe, 0xffff];
    for id in (0..0x200_u16).chain(reserved) {
        let kind = extended(id);
        let hidden = kind == Kind::Hidden;
        // The register before that has the length of a vendor's capability.
        for (ids, offset) in [([id, VSEC], 0x108), ([VSEC, id], 0x188)] {
            let (seen, lines) = logged(|| with_extended(ids, REGISTER));
            assert_eq!(lines, 0, "{id:#x}");
            // A null capability replaces a hidden one at the head.
            let head = if hidden && ids[0] == id { (0, 0) } else { (ids[0], 1) };
            let second = (!hidden || ids[1] != id).then_some((ids[1], 1));
            let expected: Vec<_> = [head].into_iter().chain(second).collect();
            assert_eq!(seen.extended_list(), expected, "{id:#x}");
            check_register(&seen, kind, offset, &format!("{id:#x}"));
        }
    }
}

#[test]
fn a_vendors_dvsec_is_shown_and_one_of_cxl_is_hidden() {
    for (vendor, shown) in [(0x8086, true), (0x1e98, false)] {
        let seen = with_extended([VSEC, 0x23], 0x1010_0000 | vendor);
        assert_eq!(seen.extended_list().len(), if shown { 2 } else { 1 }, "{vendor:#x}");
        assert_eq!(seen.u32(0x184) != 0, shown, "{vendor:#x}");
    }
}
