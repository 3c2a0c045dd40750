use proptest::prelude::*;

use super::units::MIB;
use super::*;
use crate::range::subtract;

pub(super) const FORTY_EIGHT: [AddressRange; 2] = [
    AddressRange::inclusive(0, 0xfedf_ffff),
    AddressRange::inclusive(0xfef0_0000, 0xffff_ffff_ffff),
];
pub(super) const THIRTY_NINE: [AddressRange; 2] =
    [AddressRange::inclusive(0, 0xfedf_ffff), AddressRange::inclusive(0xfef0_0000, 0x7f_ffff_ffff)];

pub(super) fn bar(size: u64, space: BarSpace) -> BarRequest {
    BarRequest { function: "0000:01:00.0".into(), index: 0, size, space }
}

pub(super) const CPU: CpuReach = CpuReach { address_bits: 46, hypertransport: false };

pub(super) fn request<'a>(
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
        spare: &[],
    }
}

pub(super) fn reserved(first: u64, last: u64) -> Reserved {
    Reserved { range: AddressRange::inclusive(first, last), what: "of group 7".into() }
}

pub(super) fn error(request: &LayoutRequest<'_>) -> String {
    Layout::plan(request).unwrap_err().to_string()
}

#[test]
fn limits_the_64_bit_window_to_the_iommus_address_bits() {
    let bars = [bar(16 * GIB, BarSpace::Memory64)];
    let plan = Layout::plan(&request(8 * GIB, &THIRTY_NINE, &bars)).unwrap();
    assert_eq!(plan.mmio64.end(), 1 << 39);
    assert_eq!(plan.bars[0].address, 16 * GIB);
}

#[test]
fn limits_the_64_bit_window_to_the_guests_address_bits() {
    let narrow = LayoutRequest {
        cpu: CpuReach { address_bits: 36, ..CPU },
        ..request(GIB, &FORTY_EIGHT, &[])
    };
    assert_eq!(Layout::plan(&narrow).unwrap().mmio64.end(), 1 << 36);
    let free = LayoutRequest { reach: IoReach::Unrestricted, ..narrow };
    assert_eq!(Layout::plan(&free).unwrap().mmio64.end(), 1 << 36);
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

/// The end of the boot data. If these addresses are reserved, every plan fails.
const LOW: u64 = HOLES[0].ram_start + 64 * MIB;

/// All ranges of memory space that the plan uses.
fn memory_of(plan: &Layout) -> Vec<AddressRange> {
    let mut used = plan.ram.clone();
    used.extend([plan.mmio32, plan.ecam, plan.mmio64]);
    used.retain(|range| !range.is_empty());
    used
}

/// Asserts what holds for every plan.
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

/// Asserts that each BAR is in a window, aligned to its size, and overlaps no other, and that the
/// BARs of one kind are in order of size.
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

pub(super) fn spare(size: u64, space: BarSpace) -> Spare {
    Spare { space, size, what: "later devices".into() }
}

fn any_spare() -> impl Strategy<Value = Vec<Spare>> {
    let narrow = (1_u64..1024).prop_map(|pages| spare(pages * MIB, BarSpace::Memory32));
    let wide = (1_u64..4096).prop_map(|pages| spare(pages * GIB / 4, BarSpace::Memory64));
    (prop::option::of(narrow), prop::option::of(wide))
        .prop_map(|(narrow, wide)| narrow.into_iter().chain(wide).collect())
}

/// Asserts that each spare room takes a BAR, together with the other one, besides all BARs.
fn assert_spare(request: &LayoutRequest<'_>, plan: &Layout) -> Result<(), TestCaseError> {
    let later = request.spare.iter().map(|spare| bar(1 << spare.size.ilog2(), spare.space));
    prop_assert_eq!(plan.room_for(&later.collect::<Vec<_>>(), &plan.bars), Ok(()));
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
        spare in any_spare(),
    ) {
        let request = LayoutRequest {
            ram: ram * GIB,
            ram_page: page,
            cpu: CpuReach { address_bits, hypertransport },
            reserved: &reserved,
            spare: &spare,
            ..request(0, &apertures, &bars)
        };
        match Layout::plan(&request) {
            Ok(plan) => {
                assert_sound(&request, &plan)?;
                assert_spare(&request, &plan)?;
            }
            Err(error) => prop_assert!(error.to_string().contains("planned so far")),
        }
    }

    #[test]
    fn finds_a_plan_where_there_is_ample_room(
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

#[test]
fn ports_have_room_apart_from_memory() {
    let plan = Layout::plan(&request(GIB, &FORTY_EIGHT, &[])).unwrap();
    let ports = bar(0x2000, BarSpace::Io);
    let placed = PlacedBar { request: ports.clone(), address: 0xc000 };
    let [one, two] = [vec![ports.clone()], vec![ports.clone(), ports.clone()]];
    assert_eq!(plan.room_for(&one, std::slice::from_ref(&placed)), Ok(()));
    assert_eq!(plan.room_for(&two, &[]), Ok(()));
    let error = plan.room_for(&two, &[placed]).unwrap_err();
    assert_eq!((error.bar, error.needed), (ports, 0x4000));
}
