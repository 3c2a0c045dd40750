//! Contradictions between MSI, MSI-X and VFIO.

use super::contradictions::{Case, shown};
use super::*;

const RESERVED_VECTORS: &str = "MSI with 64 or 128 vectors, which are reserved";
const MSI_FEWER: &str = "more MSI vectors than VFIO";
const MSI_NONE: &str = "MSI, and no MSI vectors in VFIO";
const EXTENDED_DATA: &str = "MSI Extended Message Data";
const TABLE_PLACE: &str = "MSI-X table in BAR6 or BAR7, no memory BAR, or not inside its BAR";
const PBA_PLACE: &str =
    "MSI-X PBA in BAR6 or BAR7, no memory BAR, outside its BAR, or on the table";
const NO_ROOM: &str = "MSI-X PBA without a place, and no room after the table";

pub fn cases() -> Vec<Case> {
    msi().into_iter().chain(msix()).chain(places()).collect()
}

fn is_hidden(seen: &Seen) {
    assert_eq!(seen.list(), [0x10, 0x01]);
    let registers: Vec<_> = (FIRST..EXPRESS).step_by(4).map(|at| seen.u32(at)).collect();
    assert_eq!(registers, [0; 16]);
    seen.write(FIRST + 2, &0xc001_u16.to_le_bytes());
    assert_eq!(seen.device.irqs().active, None);
}

fn msi() -> Vec<Case> {
    let has_32: fn(&Seen) = |seen| assert_eq!(seen.u16(FIRST + 2), 0x8a);
    vec![
        shown(RESERVED_VECTORS, |odd| odd.msi(0x8c, 32), 0, has_32),
        shown(RESERVED_VECTORS, |odd| odd.msi(0x8e, 64), 0, has_32),
        shown(
            MSI_FEWER,
            |odd| odd.msi(0x8a, 4),
            1,
            |seen| {
                assert_eq!(seen.u16(FIRST + 2), 0x84);
                seen.write(FIRST + 2, &[0xd1]);
                assert_eq!(seen.device.irqs().bound.len(), 4, "though the guest asks for 32");
            },
        ),
        shown(
            MSI_FEWER,
            |odd| odd.msi(0x8a, 7),
            1,
            |seen| {
                assert_eq!(seen.u16(FIRST + 2), 0x84, "a power of two");
            },
        ),
        shown(
            "fewer MSI vectors than VFIO",
            |odd| odd.msi(0x82, 32),
            0,
            |seen| {
                assert_eq!(seen.u16(FIRST + 2), 0x82);
            },
        ),
        shown(MSI_NONE, |odd| odd.msi(0x8a, 0), 1, is_hidden),
        shown("no MSI, and MSI vectors in VFIO", |odd| odd.irqs[1] = 4, 0, is_hidden),
        shown(EXTENDED_DATA, extended_data, 0, |seen| {
            assert_eq!(seen.u16(FIRST + 2), 0x80, "capable, enable and reserved bits");
            seen.write(FIRST + 2, &0xffff_u16.to_le_bytes());
            seen.write(FIRST + 12, &u32::MAX.to_le_bytes());
            assert_eq!((seen.u16(FIRST + 2), seen.u32(FIRST + 12)), (0xf1, 0xffff));
            assert_eq!(seen.real::<4>(FIRST + 12), [0x5a; 4]);
        }),
        shown(
            EXTENDED_DATA,
            |odd| odd.msi(0x0700, 1),
            0,
            |seen| {
                assert_eq!(seen.u16(FIRST + 2), 0x100);
                seen.write(FIRST + 8, &u32::MAX.to_le_bytes());
                assert_eq!(seen.u32(FIRST + 8), 0xffff);
            },
        ),
    ]
}

fn extended_data(odd: &mut Odd) {
    odd.msi(0xfe80, 1);
    odd.put(FIRST + 12, &[0x5a; 4]);
}

fn msix() -> Vec<Case> {
    vec![
        shown(
            "more MSI-X vectors than VFIO",
            |odd| odd.msix(64, TABLE, PBA, 8),
            1,
            |seen| {
                assert_eq!(seen.u16(FIRST + 2), 7);
            },
        ),
        shown(
            "fewer MSI-X vectors than VFIO",
            |odd| odd.msix(7, TABLE, PBA, 65),
            0,
            |seen| {
                assert_eq!(seen.u16(FIRST + 2), 7);
            },
        ),
        shown(
            "MSI-X reserved bits",
            |odd| odd.msix(0x3807, TABLE, PBA, 8),
            0,
            |seen| {
                assert_eq!(seen.u16(FIRST + 2), 7);
            },
        ),
        shown(
            "MSI-X, and no MSI-X vectors in VFIO",
            |odd| odd.msix(7, TABLE, PBA, 0),
            1,
            is_hidden,
        ),
        shown("no MSI-X, and MSI-X vectors in VFIO", |odd| odd.irqs[2] = 8, 0, is_hidden),
    ]
}

/// The PBA follows the table of 8 entries. It has a pending bit, and the device's register there
/// is not shown.
fn follows_the_table(seen: &Seen) {
    assert_eq!(seen.list(), [0x11, 0x10, 0x01]);
    assert_eq!([seen.u32(FIRST + 4), seen.u32(FIRST + 8)], [TABLE, TABLE + 0x80]);
    let bar0 = vfio_passthrough::BarIndex::new(0).unwrap();
    let mut pending = [0xff; 8];
    seen.write(FIRST + 2, &0x8000_u16.to_le_bytes());
    seen.function.bar_read(bar0, u64::from(TABLE) + 0x80, &mut pending);
    assert_eq!(pending, [0; 8]);
}

fn places() -> Vec<Case> {
    vec![
        shown(TABLE_PLACE, |odd| odd.msix(7, TABLE | 6, PBA, 8), 1, is_hidden),
        shown(TABLE_PLACE, |odd| odd.msix(7, TABLE | 7, PBA, 8), 1, is_hidden),
        shown(TABLE_PLACE, |odd| odd.msix(7, TABLE | 1, PBA, 8), 1, is_hidden),
        shown(TABLE_PLACE, |odd| odd.msix(7, TABLE | 2, PBA, 8), 1, is_hidden),
        shown(TABLE_PLACE, in_ports, 1, is_hidden),
        shown(TABLE_PLACE, |odd| odd.msix(7, 0x4000, PBA, 8), 1, is_hidden),
        shown(TABLE_PLACE, |odd| odd.msix(7, 0x3ff0, PBA, 8), 1, is_hidden),
        shown(TABLE_PLACE, |odd| odd.msix(7, 0xffff_fff8, PBA, 8), 1, is_hidden),
        shown(PBA_PLACE, |odd| odd.msix(7, TABLE, PBA | 6, 8), 0, follows_the_table),
        shown(PBA_PLACE, |odd| odd.msix(7, TABLE, PBA | 7, 8), 0, follows_the_table),
        shown(PBA_PLACE, |odd| odd.msix(7, TABLE, PBA | 3, 8), 0, follows_the_table),
        shown(PBA_PLACE, |odd| odd.msix(7, TABLE, 0x4000, 8), 0, follows_the_table),
        shown(PBA_PLACE, |odd| odd.msix(7, TABLE, TABLE + 0x78, 8), 0, follows_the_table),
        shown(PBA_PLACE, |odd| odd.msix(7, TABLE, TABLE, 8), 0, follows_the_table),
        shown(NO_ROOM, |odd| odd.msix(7, 0x3f80, 0x4000, 8), 1, is_hidden),
    ]
}

fn in_ports(odd: &mut Odd) {
    odd.put32(0x18, 1);
    odd.regions[2] = 0x1000;
    odd.msix(7, 2, PBA, 8);
}
