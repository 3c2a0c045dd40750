use crate::AddressRange;
use crate::layout::tests::{FORTY_EIGHT, THIRTY_NINE, bar, error, request, reserved, spare};
use crate::layout::units::{FOUR_GIB, GIB, MIB};
use crate::layout::{BarSpace, CpuReach, Layout, LayoutRequest};

const AMD: CpuReach = CpuReach { address_bits: 48, hypertransport: true };

#[test]
fn places_small_ram_in_one_region_and_a_bar_at_4_gib() {
    let bars = [bar(0x4000, BarSpace::Memory64)];
    let plan = Layout::plan(&request(512 * MIB, &FORTY_EIGHT, &bars)).unwrap();
    assert_eq!(plan.ram, [AddressRange::new(0, 512 * MIB)]);
    assert_eq!(plan.mmio32, AddressRange::between(3 * GIB, 0xf000_0000));
    assert_eq!(plan.bars[0].address, FOUR_GIB);
}

#[test]
fn places_large_ram_around_the_32_bit_hole() {
    let plan = Layout::plan(&request(4 * GIB, &FORTY_EIGHT, &[])).unwrap();
    assert_eq!(plan.ram, [AddressRange::new(0, 3 * GIB), AddressRange::new(FOUR_GIB, GIB)]);
}

#[test]
fn places_ram_around_hypertransport_on_amd() {
    let request = request(1100 * GIB, &FORTY_EIGHT, &[]);
    let plan = Layout::plan(&LayoutRequest { cpu: AMD, ..request }).unwrap();
    assert_eq!(plan.ram.len(), 3);
    assert_eq!(plan.ram[1].end(), 0xfd_0000_0000);
    assert_eq!(plan.ram[2].start, 0x100_0000_0000);
    let plan = Layout::plan(&request).unwrap();
    assert_eq!(plan.ram.len(), 2, "only AMD has HyperTransport");
}

#[test]
fn places_four_tib_around_all_reserved_addresses() {
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
fn error_has_the_request_the_available_addresses_and_the_plan() {
    let reserved = [reserved(0x7b80_0000, 0x7fff_ffff)];
    let text = error(&LayoutRequest {
        reserved: &reserved,
        cpu: AMD,
        ..request(4096 * GIB, &THIRTY_NINE, &[bar(0x4000, BarSpace::Memory64)])
    });
    let parts = [
        "for 4 TiB of RAM: 3671112 MiB do not fit into the addresses that CPUs and IOMMU reach, in at most 64 regions\n",
        "requested:\n  4 TiB of RAM in pages of 2 MiB\n  BAR 0 of 0000:01:00.0 (16 KiB of 64-bit memory)\n",
        "available:\n  CPUs reach     0x000000000000-0xffffffffffff (256 TiB)\n",
        "  IOMMU reaches  0x0000fef00000-0x007fffffffff (520209 MiB)\n",
        "  reserved       0x0000fee00000-0x0000feefffff (1 MiB): interrupts\n",
        "  reserved       0x00fd00000000-0x00ffffffffff (12 GiB): HyperTransport\n",
        "  reserved       0x00007b800000-0x00007fffffff (72 MiB): of group 7\n",
        "planned so far:\n  RAM            0x000000000000-0x00007b7fffff (1976 MiB)\n",
    ];
    parts.iter().for_each(|part| assert!(text.contains(part), "{part:?} is not in:\n{text}"));
}

#[test]
fn places_ram_in_whole_pages() {
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
    let expected = "for 2560 MiB of RAM: the size is not a multiple of a page of 1 GiB\n";
    assert!(error(&odd).contains(expected));
}

#[test]
fn places_bars_outside_reserved_addresses() {
    let bars = [bar(16 * MIB, BarSpace::Memory32), bar(GIB, BarSpace::Memory64)];
    let reserved = [reserved(0xc000_0000, 0xdfff_ffff), reserved(FOUR_GIB, 2 * FOUR_GIB - 1)];
    let request = LayoutRequest { reserved: &reserved, ..request(512 * MIB, &FORTY_EIGHT, &bars) };
    let plan = Layout::plan(&request).unwrap();
    let addresses: Vec<_> = plan.bars.iter().map(|bar| bar.address).collect();
    assert_eq!(addresses, [0xe000_0000, 2 * FOUR_GIB]);
}

#[test]
fn places_64_bit_bars_in_both_windows() {
    // Above RAM is room for one 64-bit BAR. The 32-bit BAR is placed before the other one.
    let apertures = [AddressRange::new(0, 6 * GIB)];
    let bars = [
        bar(GIB, BarSpace::Memory64),
        bar(GIB, BarSpace::Memory64),
        bar(GIB / 2, BarSpace::Memory32),
    ];
    let plan = Layout::plan(&request(3 * GIB, &apertures, &bars)).unwrap();
    let addresses: Vec<_> = plan.bars.iter().map(|bar| bar.address).collect();
    assert_eq!(addresses, [3 * GIB, 4 * GIB, 5 * GIB]);
    // With no addresses above 4 GiB, both go into the 32-bit window.
    let low = [AddressRange::new(0, FOUR_GIB)];
    let plan = Layout::plan(&request(GIB, &low, &bars[..2])).unwrap();
    let addresses: Vec<_> = plan.bars.iter().map(|bar| bar.address).collect();
    assert_eq!(addresses, [GIB, 2 * GIB]);
}

#[test]
fn starts_the_hole_lower_for_large_32_bit_bars() {
    let bars = [bar(GIB, BarSpace::Memory32)];
    let plan = Layout::plan(&request(4 * GIB, &FORTY_EIGHT, &bars)).unwrap();
    assert_eq!(plan.ram[0].end(), 2 * GIB);
    assert_eq!(plan.bars[0].address, 2 * GIB);
}

#[test]
fn places_a_64_bit_bar_below_4_gib_if_nothing_above_is_reachable() {
    let low = [AddressRange::inclusive(0, 0xfedf_ffff)];
    let plan = Layout::plan(&request(GIB, &low, &[bar(0x4000, BarSpace::Memory64)])).unwrap();
    assert!(plan.mmio64.is_empty());
    assert_eq!(plan.bars[0].address, 3 * GIB);
}

#[test]
fn gives_a_small_memory_bar_its_own_page() {
    let bars =
        [bar(0x100, BarSpace::Memory32), bar(0x80, BarSpace::Memory32), bar(0x20, BarSpace::Io)];
    let plan = Layout::plan(&request(GIB, &FORTY_EIGHT, &bars)).unwrap();
    let addresses: Vec<_> = plan.bars.iter().map(|bar| bar.address).collect();
    assert_eq!(addresses, [0xc000_0000, 0xc000_1000, 0xc000]);
}

#[test]
fn error_names_the_bar_and_the_window() {
    let bars = [bar(4 * GIB, BarSpace::Memory32)];
    let text = error(&request(GIB, &FORTY_EIGHT, &bars));
    for part in [
        "for BAR 0 of 0000:01:00.0 (4 GiB of 32-bit memory): the largest free piece of the 32-bit window has 2816 MiB\n",
        "RAM            0x000000000000-0x00003fffffff (1 GiB)",
    ] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

#[test]
fn error_reports_how_much_ram_does_not_fit() {
    let low = [AddressRange::inclusive(0, 0xfedf_ffff)];
    let text = error(&request(4 * GIB, &low, &[]));
    assert!(text.contains("4 GiB of RAM: 1 GiB do not fit into the addresses"), "{text}");
}

#[test]
fn rejects_an_iommu_that_does_not_reach_low_memory() {
    let high = [AddressRange::inclusive(MIB, 0xfedf_ffff)];
    let text = error(&request(GIB, &high, &[]));
    assert!(text.contains("RAM needs 0x0-0x3ffffff, which is reserved or out"), "{text}");
}

#[test]
fn places_the_bars_of_another_boot_in_the_same_windows() {
    let first = [bar(MIB, BarSpace::Memory32), bar(GIB, BarSpace::Memory64)];
    let plan = Layout::plan(&request(512 * MIB, &FORTY_EIGHT, &first)).unwrap();
    let second = [bar(2 * GIB, BarSpace::Memory64), bar(4 * GIB, BarSpace::Memory32)];
    let again = plan.with_bars(&second);
    assert_eq!(again, Layout { bars: Vec::new(), ..plan.clone() }, "the 32-bit BAR has no room");
    let again = plan.with_bars(&second[..1]);
    let addresses: Vec<_> = again.bars.iter().map(|bar| bar.address).collect();
    assert_eq!(addresses, [FOUR_GIB]);
    assert_eq!(Layout { bars: plan.bars.clone(), ..again }, plan);
}

#[test]
fn keeps_room_for_bars_that_come_later() {
    let bars = [bar(512 * MIB, BarSpace::Memory32), bar(GIB, BarSpace::Memory64)];
    let later = [spare(512 * MIB, BarSpace::Memory32), spare(64 * GIB, BarSpace::Memory64)];
    let with = |spare| {
        let request = request(2 * GIB, &FORTY_EIGHT, &bars);
        Layout::plan(&LayoutRequest { spare, ..request }).unwrap()
    };
    let (without, with) = (with(&[]), with(&later));
    assert_eq!([without.mmio32.start, with.mmio32.start], [3 * GIB, 2 * GIB], "a larger window");
    assert_eq!(with.bars[1], without.bars[1], "BARs are where they would be anyway");
    let come = [bar(512 * MIB, BarSpace::Memory32), bar(64 * GIB, BarSpace::Memory64)];
    assert_eq!(with.room_for(&come, &with.bars), Ok(()));
    let error = without.room_for(&come, &without.bars).unwrap_err();
    assert_eq!(error.needed, 512 * MIB);
    let expected = "no room in the guest's address space for BAR 0 of 0000:01:00.0 (512 MiB of \
                    32-bit memory): the largest free piece of the 32-bit window has 256 MiB";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn error_names_spare_room_that_does_not_fit() {
    let later = [spare(GIB, BarSpace::Memory32), spare(64 * GIB, BarSpace::Memory64)];
    let apertures = [AddressRange::new(0, 32 * GIB)];
    let request = LayoutRequest { spare: &later, ..request(GIB, &apertures, &[]) };
    let text = error(&request);
    let parts = [
        "for 64 GiB of 64-bit memory for later devices: the largest free piece of the 64-bit window",
        "\n  1 GiB of 32-bit memory for later devices\n",
    ];
    parts.iter().for_each(|part| assert!(text.contains(part), "{part:?} is not in:\n{text}"));
}

#[test]
fn rejects_ram_in_more_than_64_regions() {
    let holes: Vec<_> = (64..512).map(|n| reserved(n << 22, (n << 22) + 1)).collect();
    let text = error(&LayoutRequest { reserved: &holes, ..request(4 * GIB, &FORTY_EIGHT, &[]) });
    assert!(text.contains("in at most 64 regions"), "{text}");
    assert_eq!(text.matches("\n  RAM ").count(), 64);
}
