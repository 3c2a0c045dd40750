//! Walks of capability lists (PCI 3.0, 6.7; PCIe 7.6.3). Each walk ends, for any content of config
//! space.

use super::regs::{CONVENTIONAL_SIZE, EXTENDED_SIZE, HEADER_END};

/// A capability of the list that starts at 0x34.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// The capability ID; see [`cap`](super::regs::cap).
    pub id: u8,
    /// The offset of its header: a multiple of 4, at least 0x40.
    pub offset: u16,
}

/// An extended capability, of the list that starts at 0x100.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtendedCapability {
    /// The extended capability ID; see [`ext`](super::regs::ext).
    pub id: u16,
    /// The capability version, 0 to 15.
    pub version: u8,
    /// The offset of its header: a multiple of 4, at least 0x100.
    pub offset: u16,
}

/// The result of a walk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk<T> {
    /// The capabilities, in the order of the list.
    pub found: Vec<T>,
    /// The reason, if the list was cut.
    pub cut: Option<String>,
}

/// Walks the capabilities of conventional config space from the pointer `first` on. `read` returns
/// the 16 bits at an offset: ID and next pointer. The list is cut if it loops, or points into the
/// header or to nothing. It has at most 48 entries.
pub fn standard(first: u8, mut read: impl FnMut(u16) -> u16) -> Walk<Capability> {
    let (mut found, mut cut): (Vec<Capability>, _) = (Vec::new(), None);
    // The lower two bits are reserved, and software must mask them (PCI 3.0, 6.7).
    let mut offset = u16::from(first & 0xfc);
    while offset != 0 {
        if offset < HEADER_END || found.iter().any(|known| known.offset == offset) {
            cut = Some(format!(
                "capability list cut at {offset:#x}: it points into the header or repeats itself"
            ));
            break;
        }
        let [id, next] = read(offset).to_le_bytes();
        if id == 0xff {
            cut = Some(format!("capability list cut at {offset:#x}: nothing answers there"));
            break;
        }
        found.push(Capability { id, offset });
        offset = u16::from(next & 0xfc);
    }
    Walk { found, cut }
}

/// Walks the extended capabilities. `read` returns the 32-bit header at an offset. The list is cut
/// as in [`standard`]. It has at most 960 entries.
pub fn extended(mut read: impl FnMut(u16) -> u32) -> Walk<ExtendedCapability> {
    let (mut found, mut cut): (Vec<ExtendedCapability>, _) = (Vec::new(), None);
    let mut offset = CONVENTIONAL_SIZE;
    while offset != 0 {
        let repeated = found.iter().any(|known| known.offset == offset);
        if !(CONVENTIONAL_SIZE..EXTENDED_SIZE).contains(&offset) || repeated {
            cut = Some(format!(
                "extended capability list cut at {offset:#x}: it points below 0x100 or repeats \
                 itself"
            ));
            break;
        }
        let header = read(offset);
        // A header of zeros is an empty list (PCIe 7.6.3). A function without extended config space
        // reads as all-ones.
        if header == 0 || header == u32::MAX {
            if !found.is_empty() {
                cut =
                    Some(format!("extended capability list cut at {offset:#x}: nothing is there"));
            }
            break;
        }
        let [low, high, upper, top] = header.to_le_bytes();
        found.push(ExtendedCapability {
            id: u16::from_le_bytes([low, high]),
            version: upper & 0xf,
            offset,
        });
        offset = (u16::from_le_bytes([upper, top]) >> 4) & 0xffc;
    }
    Walk { found, cut }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn offsets(list: &[(u16, u16)], first: u8) -> Vec<u16> {
        let read = |offset| {
            list.iter().find(|(at, _)| *at == offset).map_or(0xffff, |(_, header)| *header)
        };
        standard(first, read).found.iter().map(|capability| capability.offset).collect()
    }

    #[test]
    fn walks_a_list_in_its_order() {
        assert_eq!(
            offsets(&[(0x40, 0x6001), (0x60, 0x5011), (0x50, 0x0010)], 0x43),
            [0x40, 0x60, 0x50]
        );
        assert!(offsets(&[], 0).is_empty());
    }

    #[test]
    fn cuts_a_list_that_loops_or_points_into_the_header_or_to_nothing() {
        assert_eq!(offsets(&[(0x40, 0x5001), (0x50, 0x4011)], 0x40), [0x40, 0x50]);
        assert_eq!(offsets(&[(0x40, 0x4001)], 0x40), [0x40]);
        assert_eq!(offsets(&[(0x40, 0x1001)], 0x40), [0x40]);
        assert_eq!(offsets(&[(0x40, 0x8001)], 0x40), [0x40]);
    }

    #[test]
    fn walks_or_cuts_a_list_that_fills_its_space() {
        for (after_last, is_cut) in [(0, false), (0x40, true)] {
            let next = |offset| {
                if offset == 0xfc { after_last } else { offset + 4 }
            };
            let walk = standard(0x40, |offset| next(offset) << 8 | 5);
            assert_eq!((walk.found.len(), walk.cut.is_some()), (48, is_cut));
        }
        for (after_last, is_cut) in [(0, false), (0x100, true)] {
            let next = |offset| {
                if offset == 0xffc { after_last } else { offset + 4 }
            };
            let walk = extended(|offset| u32::from(next(offset)) << 20 | 5);
            assert_eq!((walk.found.len(), walk.cut.is_some()), (960, is_cut));
        }
    }

    #[test]
    fn parses_extended_headers() {
        let read = |offset| {
            if offset == 0x100 { 0x1502_0001 } else { 0x0001_0010 }
        };
        let found = extended(read).found;
        assert_eq!(
            found,
            [
                ExtendedCapability { id: 1, version: 2, offset: 0x100 },
                ExtendedCapability { id: 0x10, version: 1, offset: 0x150 },
            ]
        );
        assert_eq!(extended(|_| u32::MAX).found, []);
        assert_eq!(extended(|_| 0).found, []);
    }

    proptest! {
        #[test]
        fn walks_end_and_find_each_offset_once(
            words in prop::collection::vec(any::<u32>(), 1024), first: u8,
        ) {
            let read = |offset: u16| words[usize::from(offset) / 4];
            let walk = standard(first, |offset| read(offset) as u16);
            let mut standard: Vec<_> = walk.found.iter().map(|found| found.offset).collect();
            let walk = extended(read);
            let mut extended: Vec<_> = walk.found.iter().map(|found| found.offset).collect();
            prop_assert!(standard.iter().all(|offset| (0x40..0x100).contains(offset)));
            prop_assert!(extended.iter().all(|offset| (0x100..0x1000).contains(offset)));
            for list in [&mut standard, &mut extended] {
                let all = list.len();
                list.sort();
                list.dedup();
                prop_assert_eq!(list.len(), all);
            }
        }
    }
}
