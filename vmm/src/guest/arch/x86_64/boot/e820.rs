//! The memory map of the guest.

use resources::{AddressRange, Layout};

use super::acpi::FIRMWARE;
use super::addresses::HIGH_RAM;

/// Usable RAM; e820 and PVH use the same number.
pub(crate) const RAM: u32 = 1;
pub(crate) const RESERVED: u32 = 2;

/// RAM ends here below 1 MiB; then come the EBDA, VGA and ROMs of a PC.
const LOW_RAM_END: u64 = 0x9_fc00;

/// All RAM except the hole below 1 MiB; the firmware area and ECAM are reserved.
///
/// Linux uses ECAM only if the memory map or the ACPI namespace reserves it.
pub(crate) fn map(layout: &Layout) -> Vec<(AddressRange, u32)> {
    let low = AddressRange::between(0, LOW_RAM_END);
    let high = AddressRange::between(HIGH_RAM, u64::MAX);
    let ram =
        layout.ram.iter().flat_map(|range| [range.intersection(&low), range.intersection(&high)]);
    let ram = ram.filter(|range| !range.is_empty()).map(|range| (range, RAM));
    let mut map: Vec<_> = ram.collect();
    map.extend([(FIRMWARE, RESERVED), (layout.ecam, RESERVED)]);
    map.sort_unstable();
    map
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::guest::layout::fixture::layout;

    #[test]
    fn excludes_the_hole_below_1_mib_and_reserves_ecam() {
        let layout = layout("5G", &[]);
        let expected = [
            (AddressRange::between(0, 0x9_fc00), RAM),
            (FIRMWARE, RESERVED),
            (AddressRange::between(0x10_0000, 3 << 30), RAM),
            (layout.ecam, RESERVED),
            (AddressRange::between(4 << 30, 6 << 30), RAM),
        ];
        assert_eq!(map(&layout), expected);
    }

    #[test]
    fn maps_ram_around_reserved_ranges() {
        let layout = layout("2T", &[(0x6000_0000, 0x601f_ffff), (1 << 40, (1 << 40) + 0xf_ffff)]);
        let expected = [
            (AddressRange::between(0, 0x9_fc00), RAM),
            (FIRMWARE, RESERVED),
            (AddressRange::between(0x10_0000, 0x6000_0000), RAM),
            (AddressRange::between(0x6020_0000, 3 << 30), RAM),
            (layout.ecam, RESERVED),
            (AddressRange::between(4 << 30, 0xfd_0000_0000), RAM),
            (AddressRange::between((1 << 40) + 0x20_0000, layout.ram_end()), RAM),
        ];
        assert_eq!(map(&layout), expected);
    }

    proptest! {
        /// The mapped RAM equals the layout's RAM, less the hole below 1 MiB.
        #[test]
        fn maps_exactly_the_ram_of_the_layout(
            reserved in prop::collection::vec((64_u64 << 20..16 << 30, 1_u64..1 << 30), 0..8),
        ) {
            let reserved: Vec<_> = reserved.into_iter().map(|(first, size)| (first, first + size)).collect();
            let layout = layout("12G", &reserved);
            let map = map(&layout);
            prop_assert!(map.len() <= 128, "the zero page has 128 entries");
            prop_assert!(map.is_sorted_by(|(low, _), (high, _)| low.end() <= high.start));
            let ram: Vec<_> = map.iter().filter(|(_, kind)| *kind == RAM).map(|(range, _)| *range).collect();
            prop_assert!(ram.iter().all(|range| layout.ram.iter().any(|region| region.contains(range))));
            let total: u64 = ram.iter().map(|range| range.size).sum();
            prop_assert_eq!(total, (12 << 30) - (HIGH_RAM - LOW_RAM_END));
        }
    }
}
