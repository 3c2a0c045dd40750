use proptest::prelude::*;

use super::*;

const FORTY_EIGHT: [AddressRange; 2] = [
    AddressRange::inclusive(0, 0xfedf_ffff),
    AddressRange::inclusive(0xfef0_0000, 0xffff_ffff_ffff),
];
const THIRTY_NINE: [AddressRange; 2] =
    [AddressRange::inclusive(0, 0xfedf_ffff), AddressRange::inclusive(0xfef0_0000, 0x7f_ffff_ffff)];

fn bar(size: u64, space: BarSpace) -> BarRequest {
    BarRequest { function: "0000:01:00.0".into(), index: 0, size, space }
}

const CPU: CpuReach = CpuReach { address_bits: 46, hypertransport: false };
const AMD: CpuReach = CpuReach { address_bits: 48, hypertransport: true };

fn request<'a>(
    ram: u64,
    apertures: &'a [AddressRange],
    bars: &'a [BarRequest],
) -> LayoutRequest<'a> {
    LayoutRequest {
        ram,
        ram_page: 2 * MIB,
        cpu: CPU,
        reach: IoReach::Apertures(apertures),
        reserved: &[],
        bars,
    }
}

fn reserved(first: u64, last: u64) -> Reserved {
    Reserved { range: AddressRange::inclusive(first, last), what: "of group 7".into() }
}

fn error(request: &LayoutRequest<'_>) -> String {
    Layout::plan(request).unwrap_err().to_string()
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
    assert_eq!(plan.ram, [AddressRange::new(0, 3 * GIB), AddressRange::new(FOUR_GIB, GIB)]);
}

#[test]
fn ram_goes_around_the_hypertransport_hole() {
    let request = request(1100 * GIB, &FORTY_EIGHT, &[]);
    let plan = Layout::plan(&LayoutRequest { cpu: AMD, ..request }).unwrap();
    assert_eq!(plan.ram.len(), 3);
    assert_eq!(plan.ram[1].end(), 0xfd_0000_0000);
    assert_eq!(plan.ram[2].start, 0x100_0000_0000);
    let plan = Layout::plan(&request).unwrap();
    assert_eq!(plan.ram.len(), 2, "it is AMD's alone");
}

#[test]
fn four_tib_are_planned_around_all_that_is_reserved() {
    let reserved = [reserved(0x7b80_0000, 0x7fff_ffff), reserved(1 << 41, (1 << 41) + MIB)];
    let bars = [bar(64 * GIB, BarSpace::Memory64), bar(MIB, BarSpace::Memory32)];
    let request =
        LayoutRequest { cpu: AMD, reserved: &reserved, ..request(4096 * GIB, &FORTY_EIGHT, &bars) };
    let plan = Layout::plan(&request).unwrap();
    let ends: Vec<_> = plan.ram.iter().map(AddressRange::end).collect();
    assert_eq!(ends[..4], [0x7b80_0000, 3 * GIB, 0xfd_0000_0000, 1 << 41]);
    assert_eq!(plan.ram.iter().map(|range| range.size).sum::<u64>(), 4 << 40);
    assert!(plan.bars[1].address >= plan.ram_end());
}

#[test]
fn four_tib_do_not_fit_39_bits_and_the_error_has_all_that_is_known() {
    let reserved = [reserved(0x7b80_0000, 0x7fff_ffff)];
    let text = error(&LayoutRequest {
        reserved: &reserved,
        cpu: AMD,
        ..request(4096 * GIB, &THIRTY_NINE, &[bar(0x4000, BarSpace::Memory64)])
    });
    let parts = [
        "for 4 TiB of RAM: 3671112 MiB are left over when all that CPUs and IOMMU reach in 64 regions is used\n",
        "asked for:\n  4 TiB of RAM in pages of 2 MiB\n  BAR 0 of 0000:01:00.0 (16 KiB of 64-bit memory)\n",
        "there is:\n  CPUs reach     0x000000000000-0xffffffffffff (256 TiB)\n",
        "  IOMMU reaches  0x0000fef00000-0x007fffffffff (520209 MiB)\n",
        "  reserved       0x0000fee00000-0x0000feefffff (1 MiB): interrupts\n",
        "  reserved       0x00fd00000000-0x00ffffffffff (12 GiB): HyperTransport\n",
        "  reserved       0x00007b800000-0x00007fffffff (72 MiB): of group 7\n",
        "planned so far:\n  RAM            0x000000000000-0x00007b7fffff (1976 MiB)\n",
    ];
    parts.iter().for_each(|part| assert!(text.contains(part), "{part:?} is not in:\n{text}"));
}

#[test]
fn ram_goes_in_whole_pages_around_what_is_reserved() {
    let reserved = [reserved(0x6010_0000, 0x6010_0fff)];
    let request = LayoutRequest { reserved: &reserved, ..request(4 * GIB, &FORTY_EIGHT, &[]) };
    let plan = Layout::plan(&request).unwrap();
    let expected = [
        AddressRange::between(0, 0x6000_0000),
        AddressRange::between(0x6020_0000, 3 * GIB),
        AddressRange::new(FOUR_GIB, GIB + 2 * MIB),
    ];
    assert_eq!(plan.ram, expected);
    let large = LayoutRequest { ram_page: GIB, ..request };
    let plan = Layout::plan(&large).unwrap();
    let expected = [
        AddressRange::new(0, GIB),
        AddressRange::new(2 * GIB, GIB),
        AddressRange::new(FOUR_GIB, 2 * GIB),
    ];
    assert_eq!(plan.ram, expected);
    let odd = LayoutRequest { ram: 5 * GIB / 2, ..large };
    assert!(error(&odd).contains("for 2560 MiB of RAM: it is to be of pages of 1 GiB\n"));
}

#[test]
fn bars_keep_clear_of_what_is_reserved() {
    let bars = [bar(16 * MIB, BarSpace::Memory32), bar(GIB, BarSpace::Memory64)];
    let reserved = [reserved(0xc000_0000, 0xdfff_ffff), reserved(FOUR_GIB, 2 * FOUR_GIB - 1)];
    let request = LayoutRequest { reserved: &reserved, ..request(512 * MIB, &FORTY_EIGHT, &bars) };
    let plan = Layout::plan(&request).unwrap();
    let addresses: Vec<_> = plan.bars.iter().map(|bar| bar.address).collect();
    assert_eq!(addresses, [0xe000_0000, 2 * FOUR_GIB]);
}

#[test]
fn ram_in_too_many_pieces_is_refused() {
    let holes: Vec<_> = (64..512).map(|n| reserved(n << 22, (n << 22) + 1)).collect();
    let text = error(&LayoutRequest { reserved: &holes, ..request(4 * GIB, &FORTY_EIGHT, &[]) });
    assert!(text.contains("in 64 regions"), "{text}");
    assert_eq!(text.matches("\n  RAM ").count(), 64);
}

#[test]
fn bars_share_the_windows_as_well_as_they_can() {
    // Above RAM is room for one of the two, and the 32-bit BAR comes before what may go elsewhere.
    let apertures = [AddressRange::new(0, 6 * GIB)];
    let bars = [
        bar(GIB, BarSpace::Memory64),
        bar(GIB, BarSpace::Memory64),
        bar(GIB / 2, BarSpace::Memory32),
    ];
    let plan = Layout::plan(&request(3 * GIB, &apertures, &bars)).unwrap();
    let addresses: Vec<_> = plan.bars.iter().map(|bar| bar.address).collect();
    assert_eq!(addresses, [3 * GIB, 4 * GIB, 5 * GIB]);
    // Two more go below 4 GiB where RAM leaves room there.
    let low = [AddressRange::new(0, FOUR_GIB)];
    let plan = Layout::plan(&request(GIB, &low, &bars[..2])).unwrap();
    let addresses: Vec<_> = plan.bars.iter().map(|bar| bar.address).collect();
    assert_eq!(addresses, [GIB, 2 * GIB]);
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
        cpu: CpuReach { address_bits: 36, ..CPU },
        ..request(GIB, &FORTY_EIGHT, &[])
    };
    assert_eq!(Layout::plan(&narrow).unwrap().mmio64.end(), 1 << 36);
    let free = LayoutRequest { reach: IoReach::Unrestricted, ..narrow };
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
    let bars =
        [bar(0x100, BarSpace::Memory32), bar(0x80, BarSpace::Memory32), bar(0x20, BarSpace::Io)];
    let plan = Layout::plan(&request(GIB, &FORTY_EIGHT, &bars)).unwrap();
    let addresses: Vec<_> = plan.bars.iter().map(|bar| bar.address).collect();
    assert_eq!(addresses, [0xc000_0000, 0xc000_1000, 0xc000]);
}

#[test]
fn errors_name_the_bar_the_window_and_the_plan() {
    let bars = [bar(4 * GIB, BarSpace::Memory32)];
    let text = error(&request(GIB, &FORTY_EIGHT, &bars));
    for part in [
        "for BAR 0 of 0000:01:00.0 (4 GiB of 32-bit memory): the 32-bit window has at most 2816 MiB left in one piece\n",
        "RAM            0x000000000000-0x00003fffffff (1 GiB)",
    ] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

#[test]
fn too_much_ram_says_how_much_is_left_over() {
    let low = [AddressRange::inclusive(0, 0xfedf_ffff)];
    let text = error(&request(4 * GIB, &low, &[]));
    assert!(text.contains("4 GiB of RAM: 1 GiB are left over"), "{text}");
}

#[test]
fn an_iommu_that_does_not_reach_low_memory_is_an_error() {
    let high = [AddressRange::inclusive(MIB, 0xfedf_ffff)];
    let text = error(&request(GIB, &high, &[]));
    assert!(text.contains("it must begin with 0x0-0x3ffffff, which is reserved or out"), "{text}");
}

fn any_bar() -> impl Strategy<Value = BarRequest> {
    let space = prop_oneof![Just(BarSpace::Memory32), Just(BarSpace::Memory64), Just(BarSpace::Io)];
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

fn any_reserved() -> impl Strategy<Value = Vec<Reserved>> {
    let region = (0_u32..42, any::<u32>(), 1_u64..64 << 20);
    let region = region.prop_map(|(order, seed, size)| {
        let start = LOW + (u64::from(seed) << order >> 10 & !0xfff);
        reserved(start, start + size)
    });
    prop::collection::vec(region, 0..8)
}

/// Where the boot data is, which nothing may take from RAM.
const LOW: u64 = 64 * MIB;

/// All that the plan uses of memory space.
fn memory_of(plan: &Layout) -> Vec<AddressRange> {
    let mut used = plan.ram.clone();
    used.extend([plan.mmio32, plan.ecam, plan.mmio64]);
    used.retain(|range| !range.is_empty());
    used
}

/// What holds for every plan, whatever it was made from.
fn assert_sound(request: &LayoutRequest<'_>, plan: &Layout) -> Result<(), TestCaseError> {
    let IoReach::Apertures(apertures) = request.reach else {
        return Err(TestCaseError::fail("an IOMMU"));
    };
    let used = memory_of(plan);
    for (at, range) in used.iter().enumerate() {
        prop_assert!(used[at + 1..].iter().all(|other| !range.overlaps(other)));
        prop_assert!(range.end() <= 1 << request.cpu.address_bits);
    }
    for range in used.iter().filter(|range| **range != ECAM) {
        prop_assert!(apertures.iter().any(|aperture| aperture.contains(range)));
        prop_assert!(request.all_reserved().all(|(reserved, _)| !range.overlaps(&reserved)));
    }
    prop_assert_eq!(plan.ram.iter().map(|range| range.size).sum::<u64>(), request.ram);
    prop_assert!(plan.ram.is_sorted_by(|low, high| low.end() <= high.start));
    for end in plan.ram.iter().flat_map(|range| [range.start, range.end()]) {
        prop_assert_eq!(end % request.ram_page, 0);
    }
    assert_bars(request.bars, plan)
}

/// Each is in a window, naturally aligned and alone, and those of one kind are in order of size.
fn assert_bars(bars: &[BarRequest], plan: &Layout) -> Result<(), TestCaseError> {
    prop_assert_eq!(plan.bars.len(), bars.len());
    for (at, bar) in plan.bars.iter().enumerate() {
        let (range, space) = (bar.range(), bar.request.space);
        prop_assert_eq!(bar.address % bar.request.size, 0);
        let windows = match space {
            BarSpace::Io => vec![plan.io],
            BarSpace::Memory32 => vec![plan.mmio32],
            BarSpace::Memory64 => vec![plan.mmio32, plan.mmio64],
        };
        prop_assert!(windows.iter().any(|window| window.contains(&range)));
        let ports = space == BarSpace::Io;
        for other in &plan.bars[at + 1..] {
            let other_ports = other.request.space == BarSpace::Io;
            prop_assert!(ports != other_ports || !range.overlaps(&other.range()));
            prop_assert!(
                space != other.request.space || bar.request.size.max(PAGE) >= other.request.size
            );
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn every_plan_is_sound(
        ram in prop_oneof![1_u64..64, 1_u64..4096],
        page in prop_oneof![Just(2 * MIB), Just(GIB)],
        apertures in any_aperture(),
        reserved in any_reserved(),
        bars in prop::collection::vec(any_bar(), 0..12),
        address_bits in 36_u8..=52,
        hypertransport: bool,
    ) {
        let request = LayoutRequest {
            ram: ram * GIB,
            ram_page: page,
            cpu: CpuReach { address_bits, hypertransport },
            reserved: &reserved,
            ..request(0, &apertures, &bars)
        };
        match Layout::plan(&request) {
            Ok(plan) => assert_sound(&request, &plan)?,
            Err(error) => prop_assert!(error.to_string().contains("planned so far")),
        }
    }

    /// Nothing is refused that has room to spare.
    #[test]
    fn there_is_a_plan_where_there_is_room(
        ram in (32_u64..8192).prop_map(|pages| pages * 2 * MIB),
        reserved in any_reserved(),
        bars in prop::collection::vec(any_bar(), 0..12),
    ) {
        let mut request = request(ram, &THIRTY_NINE, &bars);
        let plan = Layout::plan(&request).unwrap();
        assert_sound(&request, &plan)?;
        request.reserved = &reserved;
        let small = |bar: &BarRequest| bar.size <= 16 * MIB;
        if bars.iter().all(small) {
            let plan = Layout::plan(&request).unwrap();
            assert_sound(&request, &plan)?;
        }
    }
}
