//! Contradictions in the lists of capabilities, and in the size of config space.

use super::contradictions::{Case, shown};
use super::*;

const CUT: &str = "capability pointer below 0x40, into a loop, or to all-ones";
const OVERLAP: &str = "capability that overlaps the next, or the end of its space";
const UNALIGNED: &str = "capability pointer that is no multiple of 4";
const EXTENDED_CUT: &str = "extended capability pointer below 0x100, into a loop, or to all-ones";
const LENGTH: &str = "vendor-specific length beyond the next capability, or the end of its space";
const EXTENDED_OVERLAP: &str =
    "extended capability that overlaps the next, or the end of its space";
const NO_SECOND: &str = "PCI Express version 2, and no room for its second device registers";
const SECOND: &str = "second capability of a kind that a function has once";
const SMALL: &str = "PCI Express, and 256 bytes of config space";

/// The header of an extended capability.
fn head(id: u16, version: u8, next: u16) -> u32 {
    u32::from(id) | u32::from(version) << 16 | u32::from(next) << 20
}

pub fn cases() -> Vec<Case> {
    let none: fn(&Seen) = |seen| assert_eq!(seen.list(), []);
    let express: fn(&Seen) = |seen| assert_eq!(seen.list(), [0x10]);
    let both: fn(&Seen) = |seen| assert_eq!(seen.list(), [0x10, 0x01]);
    vec![
        shown(CUT, |odd| odd.put(0x34, &[0x10]), 1, none),
        shown(CUT, |odd| odd.put(EXPRESS + 1, &[0x3c]), 1, express),
        shown(CUT, |odd| odd.put(EXPRESS + 1, &[EXPRESS as u8]), 1, express),
        shown(CUT, |odd| odd.put(POWER + 1, &[EXPRESS as u8]), 1, both),
        shown(CUT, |odd| odd.put(POWER, &[0xff; 8]), 1, express),
        shown("capability pointer without the bit in status", |odd| odd.put(6, &[0]), 0, none),
        shown(
            "no capability pointer, with the bit in status",
            |odd| odd.put(0x34, &[0]),
            0,
            |seen| {
                assert_eq!((seen.list(), seen.u16(6)), (vec![], 0));
            },
        ),
        shown(UNALIGNED, |odd| odd.put(0x34, &[EXPRESS as u8 | 3]), 0, both),
        shown(UNALIGNED, |odd| odd.put(EXPRESS + 1, &[POWER as u8 | 1]), 0, both),
        shown(OVERLAP, |odd| odd.put(EXPRESS + 1, &[0xfc, 2, 0]), 0, express),
        shown(OVERLAP, overlapping, 1, |seen| assert_eq!(seen.list(), [0x01])),
        shown(OVERLAP, at_the_end, 1, express),
        shown(SECOND, second_power, 0, |seen| {
            assert_eq!((seen.list(), seen.u32(0xe0)), (vec![0x10, 0x01], 0));
        }),
    ]
    .into_iter()
    .chain(extended())
    .chain(lengths())
    .collect()
}

/// A vendor-specific capability at 0x40, before one at 0x80, and one at 0xf0, each with this length.
fn vendors(odd: &mut Odd, length: u8) {
    odd.first(0x09, &[length, 0x5a]);
    odd.put(POWER + 1, &[0xf0]);
    odd.put(0xf0, &[0x09, 0, length, 0x5a]);
}

/// VSEC at 0x100, DVSEC at 0x140 and VSEC at 0x180, each with this length.
fn extended_vendors(odd: &mut Odd, length: u32) {
    for (at, id, next) in [(0x100, 0x0b, 0x140), (0x140, 0x23, 0x180), (0x180, 0x0b, 0)] {
        odd.put32(at, head(id, 1, next));
        odd.put32(at + 4, length << 20 | 0x5_1234);
    }
}

fn extended_words(seen: &Seen) -> [u32; 3] {
    [0x104, 0x144, 0x184].map(|at| seen.u32(at))
}

fn lengths() -> Vec<Case> {
    let first: fn(&Seen) = |seen| {
        assert_eq!((seen.list(), seen.u8(EXPRESS + 2)), (vec![0x10, 0x01], 0x91));
    };
    vec![
        shown(
            LENGTH,
            |odd| vendors(odd, 0xff),
            0,
            |seen| {
                assert_eq!([seen.u16(FIRST + 2), seen.u16(0xf2)], [0x5a40, 0x5a10]);
            },
        ),
        shown(
            LENGTH,
            |odd| vendors(odd, 0x10),
            0,
            |seen| {
                assert_eq!([seen.u16(FIRST + 2), seen.u16(0xf2)], [0x5a10, 0x5a10]);
            },
        ),
        shown(
            LENGTH,
            |odd| extended_vendors(odd, 0xfff),
            0,
            |seen| {
                assert_eq!(extended_words(seen), [0x0405_1234, 0x0405_1234, 0xe805_1234]);
            },
        ),
        shown(
            LENGTH,
            |odd| extended_vendors(odd, 0x40),
            0,
            |seen| {
                assert_eq!(extended_words(seen), [0x0405_1234; 3]);
            },
        ),
        shown(NO_SECOND, second_overlaps, 0, first),
        shown(EXTENDED_OVERLAP, extended_overlapping, 1, |seen| {
            assert_eq!((seen.extended_list(), seen.u32(0x104)), (vec![(0, 0), (3, 1)], 0));
        }),
        shown(EXTENDED_OVERLAP, extended_at_the_end, 1, |seen| {
            assert_eq!(seen.extended_list(), [(3, 1)]);
        }),
    ]
}

/// AER, which has 0x2c bytes, 0x28 bytes before the next capability.
fn extended_overlapping(odd: &mut Odd) {
    odd.put32(0x100, head(1, 1, 0x128));
    odd.put32(0x104, 0x5a5a_5a5a);
    odd.put32(0x128, head(3, 1, 0));
}

fn extended_at_the_end(odd: &mut Odd) {
    odd.put32(0x100, head(3, 1, 0xffc));
    odd.put32(0xffc, head(0x23, 1, 0));
}

/// Power management where the second device registers would be.
fn second_overlaps(odd: &mut Odd) {
    odd.put(EXPRESS + 1, &[EXPRESS as u8 + 0x28]);
    odd.put(EXPRESS + 0x28, &[0x01, 0, 3, 0]);
}

fn overlapping(odd: &mut Odd) {
    odd.put(EXPRESS + 1, &[EXPRESS as u8 + 4]);
    odd.put(EXPRESS + 4, &[0x01, 0, 3, 0]);
}

fn at_the_end(odd: &mut Odd) {
    odd.put(EXPRESS + 1, &[0xfc]);
    odd.put(0xfc, &[0x01, 0, 3, 0]);
}

fn second_power(odd: &mut Odd) {
    odd.put(POWER + 1, &[0xe0]);
    odd.put(0xe0, &[0x01, 0, 3, 0, 0, 0, 0, 0]);
}

fn extended() -> Vec<Case> {
    let one: fn(&Seen) = |seen| assert_eq!(seen.extended_list(), [(1, 2)]);
    let all_ones: fn(&Seen) = |seen| {
        assert_eq!(seen.list(), [0x10, 0x01]);
        assert_eq!([seen.u32(0x100), seen.u32(0xffc)], [u32::MAX; 2]);
    };
    vec![
        shown(EXTENDED_CUT, |odd| odd.put32(0x100, head(1, 2, 0x80)), 1, one),
        shown(EXTENDED_CUT, |odd| odd.put32(0x100, head(1, 2, 0x100)), 1, one),
        shown(EXTENDED_CUT, to_all_ones, 1, one),
        shown("extended capability pointer that is no multiple of 4", unaligned, 0, |seen| {
            assert_eq!(seen.extended_list(), [(1, 2), (3, 1)]);
        }),
        shown(
            "extended capability version 0",
            |odd| odd.put32(0x100, head(3, 0, 0)),
            0,
            |seen| {
                assert_eq!(seen.extended_list(), [(3, 1)]);
            },
        ),
        shown(SMALL, |odd| odd.config.truncate(0x100), 0, all_ones),
        shown(
            "config space between 256 and 4096 bytes",
            |odd| odd.config.truncate(0x800),
            0,
            all_ones,
        ),
        shown(
            "config space below 256 bytes",
            |odd| odd.config.truncate(0x80),
            1,
            |seen| assert_eq!([seen.u8(0x7f), seen.u8(0xfc)], [0, 0xff]),
        ),
    ]
}

fn to_all_ones(odd: &mut Odd) {
    odd.put32(0x100, head(1, 2, 0x180));
    odd.put32(0x180, u32::MAX);
}

fn unaligned(odd: &mut Odd) {
    odd.put32(0x100, head(1, 2, 0x183));
    odd.put32(0x180, head(3, 1, 0));
}
