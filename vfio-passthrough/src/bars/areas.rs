//! Divides a BAR into direct areas, which the guest accesses by its page tables, and trapped ones.
//! Pure: from VFIO's description of the region to a list of areas.

use crate::address::ByteRange;
use crate::backend::{RegionFlags, RegionInfo};

/// A part of a BAR that is mapped into the guest, relative to the BAR's start. The rest of the BAR
/// is trapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectArea(pub ByteRange);

/// The direct areas of a region: the whole pages that VFIO allows to map, without the pages of
/// `trapped` (the MSI-X table and the PBA), which are emulated.
///
/// The table's pages are trapped even if VFIO can map them (`VFIO_REGION_INFO_CAP_MSIX_MAPPABLE`):
/// the host's kernel owns the table in the hardware. Kernels before 4.16 have no such capability
/// and refuse to map those pages only.
pub fn direct_areas(region: &RegionInfo, trapped: &[ByteRange], page_size: u64) -> Vec<DirectArea> {
    if !region.flags.contains(RegionFlags::MMAP) {
        return Vec::new();
    }
    let whole = ByteRange::between(0, region.size);
    let mappable = region.sparse.clone().unwrap_or_else(|| vec![whole]);
    let mut areas: Vec<ByteRange> = Vec::new();
    for area in mappable
        .into_iter()
        .filter(|area| whole.contains(*area))
        .map(|area| area.shrink_to(page_size))
    {
        // A correct driver reports no overlap. The memory slot of the second area would fail.
        if !area.is_empty() && !areas.iter().any(|known| known.overlaps(area)) {
            areas.push(area);
        }
    }
    for range in trapped.iter().filter(|range| !range.is_empty()) {
        let pages = range.grow_to(page_size);
        areas = areas.into_iter().flat_map(|area| area.without(pages)).collect();
    }
    areas.into_iter().map(DirectArea).collect()
}

/// The page of a BAR that is smaller than a page, if VFIO allows to map it. The BAR is alone in its
/// page on the host (vfio_pci_probe_mmaps), but maybe not in the guest.
///
/// The guest's accesses stay trapped. The page is for DMA only: a BAR with a part in `trapped` has
/// none.
pub fn small_area(
    region: &RegionInfo,
    trapped: &[ByteRange],
    page_size: u64,
) -> Option<DirectArea> {
    let is_small = (1..page_size).contains(&region.size) && region.sparse.is_none();
    let may =
        region.flags.contains(RegionFlags::MMAP) && trapped.iter().all(|range| range.is_empty());
    (is_small && may).then(|| DirectArea(ByteRange::between(0, page_size)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: u64 = 0x1000;

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::between(start, end)
    }

    fn region(size: u64, sparse: Option<Vec<ByteRange>>) -> RegionInfo {
        RegionInfo { flags: RegionFlags::all(), size, sparse, ..RegionInfo::default() }
    }

    #[test]
    fn typical_bars_have_the_expected_areas() {
        let table_of_an_nvme = [range(0x2000, 0x2410), range(0x3000, 0x3010)];
        let cases = [
            (region(0x4000, None), &table_of_an_nvme[..], vec![range(0, 0x2000)]),
            (region(0x4000, None), &[], vec![range(0, 0x4000)]),
            (region(0x4000, None), &[range(1, 1)], vec![range(0, 0x4000)]),
            (
                region(0x8000, None),
                &[range(0x3ff8, 0x4008)],
                vec![range(0, 0x3000), range(0x5000, 0x8000)],
            ),
            (region(0x800, None), &[], vec![]),
            (region(0x4000, Some(vec![range(0x800, 0x3800)])), &[], vec![range(0x1000, 0x3000)]),
            (region(0x4000, Some(vec![])), &[], vec![]),
            (region(0x4000, Some(vec![range(0, 0x8000)])), &[], vec![]),
            (
                region(0x4000, Some(vec![range(0, 0x2000), range(0x1000, 0x3000)])),
                &[],
                vec![range(0, 0x2000)],
            ),
            (RegionInfo { flags: RegionFlags::READ, ..region(0x4000, None) }, &[], vec![]),
        ];
        for (region, trapped, expected) in cases {
            let found: Vec<_> =
                direct_areas(&region, trapped, PAGE).into_iter().map(|area| area.0).collect();
            assert_eq!(found, expected, "{region:?}, trapped {trapped:?}");
        }
    }

    #[test]
    fn a_small_bar_has_its_page() {
        let page = Some(DirectArea(range(0, PAGE)));
        let forbidden = RegionInfo { flags: RegionFlags::READ, ..region(0x100, None) };
        let cases = [
            (region(0x100, None), &[][..], page),
            (region(0x800, None), &[range(1, 1)], page),
            (region(0x800, None), &[range(0, 16)], None),
            (region(0x1000, None), &[], None),
            (region(0, None), &[], None),
            (region(0x100, Some(vec![])), &[], None),
            (forbidden, &[], None),
        ];
        for (region, trapped, expected) in cases {
            assert_eq!(small_area(&region, trapped, PAGE), expected, "{region:?}, {trapped:?}");
        }
    }

    /// Hosts with pages of 4, 16 and 64 KiB.
    #[test]
    fn a_page_that_has_a_part_of_the_msix_table_is_trapped_whole() {
        let table = [range(0x2000, 0x2410)];
        let all = |end| vec![range(0, end)];
        let cases = [
            (0x4000, &table[..], [vec![range(0, 0x2000), range(0x3000, 0x4000)], vec![], vec![]]),
            (
                0x20000,
                &table,
                [
                    vec![range(0, 0x2000), range(0x3000, 0x20000)],
                    vec![range(0x4000, 0x20000)],
                    vec![range(0x10000, 0x20000)],
                ],
            ),
            (0x20000, &[], [all(0x20000), all(0x20000), all(0x20000)]),
            (0x14000, &[], [all(0x14000), all(0x14000), all(0x10000)]),
            (0x2000, &[], [all(0x2000), vec![], vec![]]),
        ];
        for (size, trapped, of_pages) in cases {
            for (page, expected) in [PAGE, 4 * PAGE, 16 * PAGE].into_iter().zip(of_pages) {
                let region = region(size, None);
                let found: Vec<_> =
                    direct_areas(&region, trapped, page).into_iter().map(|area| area.0).collect();
                assert_eq!(found, expected, "{size:#x}, trapped {trapped:?}, pages of {page:#x}");
                let is_small = size < page && trapped.is_empty();
                let small = is_small.then(|| DirectArea(range(0, page)));
                assert_eq!(small_area(&region, trapped, page), small, "{size:#x} in {page:#x}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_page_is_direct_if_it_is_mappable_and_not_trapped(
            shift in prop::sample::select(vec![12, 14, 16]),
            size in 0..64_u64,
            sparse in prop::option::of(prop::collection::vec((0..64_u64, 0..64_u64), 0..4)),
            trapped in prop::collection::vec((0..64_u64 << 12, 0..0x2000_u64), 0..3),
        ) {
            let pages = |(start, end)| range(start << shift, end << shift);
            let sparse: Option<Vec<_>> =
                sparse.map(|areas| areas.into_iter().map(pages).collect());
            let region = region(size << shift, sparse.clone());
            let scale = |bytes| bytes << (shift - 12);
            let bytes = |(start, size)| range(scale(start), scale(start + size));
            let trapped: Vec<_> = trapped.into_iter().map(bytes).collect();
            let areas = direct_areas(&region, &trapped, 1 << shift);
            // The naive model: it accepts areas that fit and do not overlap, and checks page by
            // page.
            let mut accepted: Vec<ByteRange> = Vec::new();
            for area in sparse.unwrap_or_else(|| vec![range(0, region.size)]) {
                if area.end() <= region.size && !accepted.iter().any(|known| known.overlaps(area)) {
                    accepted.push(area);
                }
            }
            for page in 0..64 {
                let page = pages((page, page + 1));
                let times = areas.iter().filter(|area| area.0.overlaps(page)).count();
                let clear = !trapped.iter().any(|range| range.overlaps(page));
                let mappable = accepted.iter().any(|area| area.contains(page));
                prop_assert_eq!(times, usize::from(clear && mappable), "{:?}", page);
            }
        }
    }
}
