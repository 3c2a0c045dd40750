//! Contradictions between BARs and VFIO's regions.

use super::contradictions::{Case, shown};
use super::*;

const KIND: &str = "memory BAR of type 01 or 11";
const UPPER: &str = "64-bit BAR, and a region of its upper half";
const PORTS: &str = "I/O BAR with bit 1 or bit 3, or a region that can be mapped";
const TOO_LARGE: &str =
    "region above 32 KiB of ports, 2 GiB of 32 bits, 2 PiB of 64 bits, or a ROM above 16 MiB";

/// The registers of BAR2, BAR5 and the ROM.
const BAR2: usize = 0x18;
const BAR5: usize = 0x24;
const ROM: usize = 0x30;

/// Makes the register of BAR2 this, and its region this large.
fn bar2(odd: &mut Odd, register: u32, size: u64) {
    odd.put32(BAR2, register);
    odd.regions[2] = size;
}

fn is_plain_memory(seen: &Seen) {
    assert_eq!(seen.size_of(BAR2), (0x1000, 0));
}

fn has_no_bar2(seen: &Seen) {
    seen.write(BAR2, &u32::MAX.to_le_bytes());
    seen.write(BAR2 + 4, &u32::MAX.to_le_bytes());
    assert_eq!([seen.u32(BAR2), seen.u32(BAR2 + 4)], [0; 2]);
    assert_eq!(seen.function.bars().len(), 1);
}

pub fn cases() -> Vec<Case> {
    vec![
        shown(KIND, |odd| bar2(odd, 0b010, 0x1000), 0, is_plain_memory),
        shown(KIND, |odd| bar2(odd, 0b110, 0x1000), 0, is_plain_memory),
        shown("64-bit BAR in the last register", last, 0, |seen| {
            assert_eq!(seen.size_of(BAR5), (0x1000, 0));
        }),
        shown(UPPER, upper, 1, |seen| {
            seen.write(0x14, &1_u32.to_le_bytes());
            assert_eq!((seen.u32(0x14), seen.function.bars().len()), (1, 1), "the upper half");
        }),
        shown("region size that is no power of two", |odd| bar2(odd, 0, 0xfff), 0, is_plain_memory),
        shown(
            "region below 16 bytes of memory or 4 ports",
            |odd| bar2(odd, 0, 1),
            0,
            |seen| {
                assert_eq!(seen.size_of(BAR2), (16, 0));
            },
        ),
        shown("BAR, and no region", |odd| bar2(odd, 0xfebf_0000, 0), 0, has_no_bar2),
        shown("region, and a BAR of zeros", |odd| bar2(odd, 0, 0x1000), 0, is_plain_memory),
        shown(
            "ROM below 2 KiB",
            |odd| odd.regions[6] = 0x100,
            0,
            |seen| {
                seen.write(ROM, &0xffff_f800_u32.to_le_bytes());
                assert_eq!(seen.u32(ROM), 0xffff_f800);
            },
        ),
        shown(PORTS, |odd| bar2(odd, 0xc00b, 0x20), 0, ports_are_trapped),
    ]
    .into_iter()
    .chain(too_large())
    .collect()
}

fn last(odd: &mut Odd) {
    odd.put32(BAR5, 0b100);
    odd.regions[5] = 0x1000;
}

fn upper(odd: &mut Odd) {
    odd.regions[1] = 0x1000;
}

fn ports_are_trapped(seen: &Seen) {
    assert_eq!(seen.size_of(BAR2), (0x20, 1));
    seen.write(BAR2, &0xc000_u32.to_le_bytes());
    seen.write(0x04, &[1, 0]);
    assert_eq!(seen.guest.slots(), []);
    let bar2 = vfio_passthrough::BarIndex::new(2).unwrap();
    let found = seen.function.decode(vfio_passthrough::Space::Io, 0xc004);
    assert_eq!(found, Some((bar2, 4)));
}

fn too_large() -> Vec<Case> {
    vec![
        shown(TOO_LARGE, |odd| bar2(odd, 1, 0x1_0000), 1, has_no_bar2),
        shown(TOO_LARGE, |odd| bar2(odd, 0, 1 << 32), 1, has_no_bar2),
        shown(TOO_LARGE, |odd| bar2(odd, 0, (1 << 31) + 1), 1, has_no_bar2),
        shown(TOO_LARGE, |odd| bar2(odd, 0b100, 1 << 52), 1, has_no_bar2),
        shown(TOO_LARGE, |odd| bar2(odd, 0b100, u64::MAX), 1, has_no_bar2),
        shown(
            TOO_LARGE,
            |odd| odd.regions[6] = 32 << 20,
            1,
            |seen| {
                seen.write(ROM, &u32::MAX.to_le_bytes());
                assert_eq!((seen.u32(ROM), seen.function.bars().len()), (0, 1));
            },
        ),
    ]
}
