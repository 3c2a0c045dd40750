//! The memory map that the guest is given.

use resources::{AddressRange, Layout};

use super::HIGH_RAM;
use super::acpi::FIRMWARE;

/// Usable RAM, in e820's and PVH's numbering alike.
pub const RAM: u32 = 1;
/// Reserved.
pub const RESERVED: u32 = 2;

/// Below this is RAM; from here to 1 MiB are the EBDA, VGA and ROMs of a PC.
const LOW_RAM_END: u64 = 0x9_fc00;

/// All of RAM less the hole below 1 MiB, with the firmware's data and ECAM marked as reserved.
///
/// Linux uses ECAM only where the firmware's memory map or ACPI namespace reserves it.
pub fn map(layout: &Layout) -> Vec<(AddressRange, u32)> {
    let low = AddressRange::between(0, LOW_RAM_END);
    let high = AddressRange::between(HIGH_RAM, u64::MAX);
    let ram = layout
        .ram
        .iter()
        .flat_map(|range| [range.intersection(&low), range.intersection(&high)]);
    let ram = ram.filter(|range| !range.is_empty()).map(|range| (range, RAM));
    let mut map: Vec<_> = ram.collect();
    map.extend([(FIRMWARE, RESERVED), (layout.ecam, RESERVED)]);
    map.sort_unstable();
    map
}

#[cfg(test)]
mod tests {
    use resources::{IoReach, LayoutRequest};

    use super::*;

    #[test]
    fn the_hole_below_1_mib_is_not_ram_and_ecam_is_reserved() {
        let request = LayoutRequest {
            ram: 5 << 30,
            address_bits: 40,
            reach: IoReach::Unrestricted,
            reserved: &[],
            bars: &[],
        };
        let layout = Layout::plan(&request).unwrap();
        let expected = [
            (AddressRange::between(0, 0x9_fc00), RAM),
            (FIRMWARE, RESERVED),
            (AddressRange::between(0x10_0000, 3 << 30), RAM),
            (layout.ecam, RESERVED),
            (AddressRange::between(4 << 30, 6 << 30), RAM),
        ];
        assert_eq!(map(&layout), expected);
    }
}
