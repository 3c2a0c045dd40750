use proptest::prelude::*;

use super::*;

const FORTY_EIGHT: [AddressRange; 2] = [
    AddressRange::inclusive(0, 0xfedf_ffff),
    AddressRange::inclusive(0xfef0_0000, 0xffff_ffff_ffff),
];
const THIRTY_NINE: [AddressRange; 2] = [
    AddressRange::inclusive(0, 0xfedf_ffff),
    AddressRange::inclusive(0xfef0_0000, 0x7f_ffff_ffff),
];

fn bar(size: u64, space: BarSpace) -> BarRequest {
    BarRequest {
        function: "0000:01:00.0".into(),
        index: 0,
        size,
        space,
    }
}

fn request<'a>(ram: u64, apertures: &'a [AddressRange], bars: &'a [BarRequest]) -> LayoutRequest<'a> {
    LayoutRequest {
        ram,
        address_bits: 46,
        reach: IoReach::Apertures(apertures),
        reserved: &[],
        bars,
    }
}

#[test]
fn small_ram_is_one_region_and_the_bar_follows_at_4_gib() {
    let bars = [bar(0x4000, BarSpace::Memory64)];
    let plan = Layout::plan(&request(512 * MIB, &FORTY_EIGHT, &bars)).unwrap();
    assert_eq!(plan.ram, [AddressRange::new(0, 512 * MIB)]);
    assert_eq!(plan.mmio32, AddressRange::between(3 * GIB, 0xf000_0000));
    assert_eq!(plan.bars[0].address, FOUR_GIB);
}

#[test]
fn large_ram_goes_around_the_hole() {
    let plan = Layout::plan(&request(4 * GIB, &FORTY_EIGHT, &[])).unwrap();
    assert_eq!(
        plan.ram,
        [AddressRange::new(0, 3 * GIB), AddressRange::new(FOUR_GIB, GIB)]
    );
}

#[test]
fn ram_goes_around_the_hypertransport_hole() {
    let plan = Layout::plan(&request(1100 * GIB, &FORTY_EIGHT, &[])).unwrap();
    assert_eq!(plan.ram.len(), 3);
    assert_eq!(plan.ram[1].end(), 0xfd_0000_0000);
    assert_eq!(plan.ram[2].start, 0x100_0000_0000);
}

#[test]
fn with_39_bits_the_64_bit_window_ends_where_the_iommu_does() {
    let bars = [bar(16 * GIB, BarSpace::Memory64)];
    let plan = Layout::plan(&request(8 * GIB, &THIRTY_NINE, &bars)).unwrap();
    assert_eq!(plan.mmio64.end(), 1 << 39);
    assert_eq!(plan.bars[0].address, 16 * GIB);
}

#[test]
fn the_guests_own_address_bits_bound_it_too() {
    let narrow = LayoutRequest {
        address_bits: 36,
        ..request(GIB, &FORTY_EIGHT, &[])
    };
    assert_eq!(Layout::plan(&narrow).unwrap().mmio64.end(), 1 << 36);
    let free = LayoutRequest {
        reach: IoReach::Unrestricted,
        ..narrow
    };
    assert_eq!(Layout::plan(&free).unwrap().mmio64.end(), 1 << 36);
}

#[test]
fn large_32_bit_bars_move_the_hole_down() {
    let bars = [bar(GIB, BarSpace::Memory32)];
    let plan = Layout::plan(&request(4 * GIB, &FORTY_EIGHT, &bars)).unwrap();
    assert_eq!(plan.ram[0].end(), 2 * GIB);
    assert_eq!(plan.bars[0].address, 2 * GIB);
}

#[test]
fn a_64_bit_bar_goes_below_4_gib_when_nothing_above_is_reachable() {
    let low = [AddressRange::inclusive(0, 0xfedf_ffff)];
    let plan = Layout::plan(&request(GIB, &low, &[bar(0x4000, BarSpace::Memory64)])).unwrap();
    assert!(plan.mmio64.is_empty());
    assert_eq!(plan.bars[0].address, 3 * GIB);
}

#[test]
fn a_bar_smaller_than_a_page_has_a_page_to_itself() {
    let bars = [
        bar(0x100, BarSpace::Memory32),
        bar(0x80, BarSpace::Memory32),
        bar(0x20, BarSpace::Io),
    ];
    let plan = Layout::plan(&request(GIB, &FORTY_EIGHT, &bars)).unwrap();
    let addresses: Vec<_> = plan.bars.iter().map(|bar| bar.address).collect();
    assert_eq!(addresses, [0xc000_0000, 0xc000_1000, 0xc000]);
}

#[test]
fn errors_name_the_bar_the_window_and_the_plan() {
    let bars = [bar(4 * GIB, BarSpace::Memory32)];
    let text = Layout::plan(&request(GIB, &FORTY_EIGHT, &bars))
        .unwrap_err()
        .to_string();
    for part in [
        "BAR 0 of 0000:01:00.0 (0x100000000 bytes)",
        "the 32-bit window has only 0x30000000 bytes left",
        "RAM            0x000000000000-0x00003fffffff (1 GiB)",
    ] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

#[test]
fn too_much_ram_says_how_much_is_left_over() {
    let low = [AddressRange::inclusive(0, 0xfedf_ffff)];
    let text = Layout::plan(&request(4 * GIB, &low, &[]))
        .unwrap_err()
        .to_string();
    assert!(text.contains("4096 MiB of RAM: 1024 MiB are left over"), "{text}");
}

#[test]
fn an_iommu_that_does_not_reach_low_memory_is_an_error() {
    let high = [AddressRange::inclusive(MIB, 0xfedf_ffff)];
    let text = Layout::plan(&request(GIB, &high, &[])).unwrap_err().to_string();
    assert!(text.contains("the IOMMU does not reach 0x0-0x3ffffff"), "{text}");
}

fn any_bar() -> impl Strategy<Value = BarRequest> {
    let space = prop_oneof![
        Just(BarSpace::Memory32),
        Just(BarSpace::Memory64),
        Just(BarSpace::Io)
    ];
    (space, 0_u32..30).prop_map(|(space, order)| match space {
        BarSpace::Io => bar(4 << (order % 7), space),
        BarSpace::Memory32 => bar(16 << (order % 24), space),
        BarSpace::Memory64 => bar(16 << order, space),
    })
}

fn any_aperture() -> impl Strategy<Value = Vec<AddressRange>> {
    let holes = prop::collection::vec((32_u64..2048, 1_u64..512), 0..4);
    (32_u32..52, holes).prop_map(|(bits, holes)| {
        let holes: Vec<_> = holes
            .iter()
            .map(|(at, size)| AddressRange::new(at * 2 * MIB + 0x3000, size * 0x5000))
            .collect();
        subtract(vec![AddressRange::new(0, 1 << bits)], &holes)
    })
}

/// All that the plan uses of memory space.
fn memory_of(plan: &Layout) -> Vec<AddressRange> {
    let mut used = plan.ram.clone();
    used.extend([plan.mmio32, plan.ecam, plan.mmio64]);
    used.retain(|range| !range.is_empty());
    used
}

proptest! {
    #[test]
    fn nothing_overlaps_and_all_is_reachable(
        ram in (32_u64..65536).prop_map(|pages| pages * MIB),
        apertures in any_aperture(),
        bars in prop::collection::vec(any_bar(), 0..12),
        address_bits in 36_u8..52,
    ) {
        let request = LayoutRequest { address_bits, ..request(ram, &apertures, &bars) };
        let Ok(plan) = Layout::plan(&request) else { return Ok(()) };
        let used = memory_of(&plan);
        for (at, range) in used.iter().enumerate() {
            prop_assert!(used[at + 1..].iter().all(|other| !range.overlaps(other)));
            prop_assert!(RESERVED.iter().all(|reserved| !range.overlaps(reserved)));
            prop_assert!(range.end() <= 1 << address_bits);
        }
        for range in plan.ram.iter().chain([&plan.mmio32, &plan.mmio64]).filter(|range| !range.is_empty()) {
            prop_assert!(apertures.iter().any(|aperture| aperture.contains(range)));
        }
        prop_assert_eq!(plan.ram.iter().map(|range| range.size).sum::<u64>(), ram);
    }

    #[test]
    fn every_bar_is_in_a_window_naturally_aligned_and_alone(
        bars in prop::collection::vec(any_bar(), 0..12),
        ram in (64_u64..16384).prop_map(|pages| pages * MIB),
    ) {
        let plan = Layout::plan(&request(ram, &THIRTY_NINE, &bars)).unwrap();
        prop_assert_eq!(plan.bars.len(), bars.len());
        let ports = |bar: &PlacedBar| bar.request.space == BarSpace::Io;
        for (at, bar) in plan.bars.iter().enumerate() {
            let range = AddressRange::new(bar.address, bar.request.size);
            prop_assert_eq!(bar.address % bar.request.size, 0);
            let windows = match bar.request.space {
                BarSpace::Io => vec![plan.io],
                BarSpace::Memory32 => vec![plan.mmio32],
                BarSpace::Memory64 => vec![plan.mmio32, plan.mmio64],
            };
            prop_assert!(windows.iter().any(|window| window.contains(&range)));
            let rest = plan.bars[at + 1..].iter().filter(|other| ports(other) == ports(bar));
            for other in rest {
                prop_assert!(!range.overlaps(&AddressRange::new(other.address, other.request.size)));
            }
        }
    }
}
