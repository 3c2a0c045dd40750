use crate::AddressRange;
use crate::layout::tests::{bar, error, request, reserved};
use crate::layout::units::{FOUR_GIB, GIB, MIB};
use crate::layout::{BarSpace, Layout, LayoutRequest};

/// All addresses of an SMMU with 48 bits, less those to which devices write their interrupts
/// (`MSI_IOVA_BASE` in drivers/iommu/arm/arm-smmu-v3).
const SMMU: [AddressRange; 2] =
    [AddressRange::between(0, 0x800_0000), AddressRange::inclusive(0x810_0000, 0xffff_ffff_ffff)];

fn addresses(plan: &Layout) -> Vec<u64> {
    plan.bars.iter().map(|bar| bar.address).collect()
}

#[test]
fn places_ram_in_one_region_from_1_gib_on() {
    let bars = [bar(0x4000, BarSpace::Memory64), bar(MIB, BarSpace::Memory32)];
    let plan = Layout::plan(&request(512 * MIB, &SMMU, &bars)).unwrap();
    assert_eq!(plan.ram, [AddressRange::new(GIB, 512 * MIB)]);
    assert_eq!(plan.mmio32, AddressRange::between(0x1000_0000, plan.ecam.start));
    assert_eq!((plan.ecam.end(), addresses(&plan)), (0x3f10_0000, vec![0x1000_0000, FOUR_GIB]));
    let large = Layout::plan(&request(64 * GIB, &SMMU, &bars)).unwrap();
    assert_eq!(large.ram, [AddressRange::new(GIB, 64 * GIB)]);
    assert_eq!(large.mmio64.start, 65 * GIB);
}

#[test]
fn starts_ram_later_for_large_32_bit_bars() {
    let start = |size| {
        let bars = [bar(size, BarSpace::Memory32)];
        let plan = Layout::plan(&request(GIB, &SMMU, &bars)).unwrap();
        (plan.ram[0].start, plan.bars[0].address)
    };
    assert_eq!(start(256 * MIB), (GIB, 256 * MIB));
    assert_eq!(start(512 * MIB), (2 * GIB, GIB));
    assert_eq!(start(2 * GIB), (FOUR_GIB, 2 * GIB));
}

#[test]
fn starts_ram_later_if_its_first_addresses_are_reserved() {
    let reserved = [reserved(GIB, GIB + MIB)];
    let request = LayoutRequest { reserved: &reserved, ..request(GIB, &SMMU, &[]) };
    assert_eq!(Layout::plan(&request).unwrap().ram, [AddressRange::new(2 * GIB, GIB)]);
}

#[test]
fn places_ram_around_reserved_addresses() {
    let reserved = [reserved(0x8000_0000, 0x80ff_ffff)];
    let request = LayoutRequest { reserved: &reserved, ..request(2 * GIB, &SMMU, &[]) };
    let expected = [AddressRange::new(GIB, GIB), AddressRange::new(0x8100_0000, GIB)];
    assert_eq!(Layout::plan(&request).unwrap().ram, expected);
}

#[test]
fn gives_a_small_memory_bar_the_largest_page_of_a_host() {
    let bars = [bar(0x100, BarSpace::Memory32), bar(0x80, BarSpace::Memory32)];
    let plan = Layout::plan(&request(GIB, &SMMU, &bars)).unwrap();
    assert_eq!(addresses(&plan), [0x1000_0000, 0x1001_0000]);
}

#[test]
fn rejects_an_iommu_that_does_not_reach_ram() {
    let low = [AddressRange::new(0, GIB)];
    let text = error(&request(GIB, &low, &[]));
    assert!(text.contains("for 1 GiB of RAM: 1 GiB do not fit"), "{text}");
}
