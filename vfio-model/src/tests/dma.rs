use std::ops::Range;

use proptest::prelude::*;

use super::*;

const PAGE: u64 = 4096;

fn map_of(iova: u64, pages: u64) -> MapDma {
    MapDma { argsz: MapDma::ARGSZ, flags: 3, vaddr: 16 * PAGE, iova, size: pages * PAGE }
}

fn unmap_of(iova: u64, pages: u64) -> UnmapDma {
    UnmapDma { argsz: UnmapDma::ARGSZ, flags: 0, iova, size: pages * PAGE }
}

fn word64(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// A map with a change.
fn but(change: fn(&mut MapDma)) -> MapDma {
    let mut call = map_of(0, 1);
    change(&mut call);
    call
}

const LAST: u64 = u64::MAX - (PAGE - 1);

#[test]
fn a_wrong_map_is_refused() {
    let Ready { system, container, .. } = ready(host(Kernel::Linux6_12));
    system.map_dma(container, &map_of(8 * PAGE, 2)).unwrap();
    for (call, errno) in [
        (but(|call| call.argsz = 31), libc::EINVAL),
        (but(|call| call.flags = 0), libc::EINVAL),
        (but(|call| call.flags = 8 | 3), libc::EINVAL),
        (but(|call| call.flags = 4 | 1), libc::EINVAL),
        (but(|call| call.size = 0), libc::EINVAL),
        (but(|call| call.size = 1), libc::EINVAL),
        (but(|call| call.iova = 1), libc::EINVAL),
        (but(|call| call.vaddr = 1), libc::EINVAL),
        (but(|call| (call.iova, call.size) = (LAST, 2 * PAGE)), libc::EINVAL),
        (but(|call| (call.vaddr, call.size) = (LAST, 2 * PAGE)), libc::EINVAL),
        (but(|call| call.iova = LAST), libc::EINVAL),
        (but(|call| call.iova = 1 << 39), libc::EINVAL),
        (but(|call| call.iova = 0xfee0_0000), libc::EINVAL),
        (but(|call| (call.iova, call.size) = (0xfedf_f000, 2 * PAGE)), libc::EINVAL),
        (but(|call| (call.iova, call.size) = (7 * PAGE, 2 * PAGE)), libc::EEXIST),
        (but(|call| call.iova = 9 * PAGE), libc::EEXIST),
        (but(|call| call.vaddr = 0), libc::EFAULT),
        (but(|call| call.vaddr = LAST), libc::EFAULT),
        (but(|call| call.flags = 4), libc::ENOENT),
        (but(|call| (call.flags, call.iova, call.size) = (4, 8 * PAGE, 2 * PAGE)), libc::EINVAL),
    ] {
        let result = system.map_dma(container, &call);
        assert_eq!(result.unwrap_err().raw_os_error(), Some(errno), "{call:x?}");
    }
    assert_eq!(system.mappings(container).unwrap().len(), 1);
}

#[test]
fn map_dma_needs_an_iommu() {
    let system = host(Kernel::Linux6_12).build();
    let container = system.open_container();
    fails(system.map_dma(container, &map_of(0, 1)), libc::EINVAL);
    fails(system.map_dma(Fd(-1), &map_of(0, 1)), libc::EBADF);
    let group = system.open_group(1).unwrap();
    fails(system.map_dma(group, &map_of(0, 1)), libc::ENOTTY);
    fails(system.mappings(group), libc::ENOTTY);
}

#[test]
fn unmap_dma_removes_whole_mappings_and_returns_their_size() {
    let Ready { system, container, .. } = ready(host(Kernel::Linux6_12));
    for at in [0, 2, 4] {
        system.map_dma(container, &map_of(at * PAGE, 2)).unwrap();
    }
    for (iova, pages) in [(PAGE, 1), (0, 1), (PAGE, 4), (0, 3)] {
        fails(system.unmap_dma(container, &unmap_of(iova, pages)), libc::EINVAL);
    }
    assert_eq!(system.unmap_dma(container, &unmap_of(0, 4)).unwrap(), 4 * PAGE);
    assert_eq!(system.unmap_dma(container, &unmap_of(0, 4)).unwrap(), 0);
    assert_eq!(system.unmap_dma(container, &unmap_of(0, 100)).unwrap(), 2 * PAGE);
    assert_eq!(system.locked_memory(), 0);
}

#[test]
fn a_wrong_unmap_is_refused() {
    let Ready { system, container, .. } = ready(host(Kernel::Linux6_12));
    let good = unmap_of(0, 1);
    for call in [
        UnmapDma { argsz: 23, ..good },
        UnmapDma { flags: 1, ..good },
        UnmapDma { flags: 8, ..good },
        UnmapDma { size: 0, ..good },
        UnmapDma { size: 1, ..good },
        UnmapDma { iova: 1, ..good },
        UnmapDma { iova: 0_u64.wrapping_sub(PAGE), size: 2 * PAGE, ..good },
        UnmapDma { flags: 2, ..good },
        UnmapDma { flags: 2, iova: PAGE, size: 0, ..good },
    ] {
        fails(system.unmap_dma(container, &call), libc::EINVAL);
    }
}

#[test]
fn an_unmap_to_the_end_of_addresses_removes_nothing() {
    let Ready { system, container, .. } = ready(host(Kernel::Linux6_12));
    system.map_dma(container, &map_of(0, 1)).unwrap();
    let to_the_end = UnmapDma { size: 0_u64.wrapping_sub(PAGE), ..unmap_of(PAGE, 0) };
    assert_eq!(system.unmap_dma(container, &to_the_end).unwrap(), 0);
}

#[test]
fn version_1_unmaps_mappings_that_begin_in_the_range() {
    let system = host(Kernel::Linux6_12).build();
    let (container, group) = (system.open_container(), system.open_group(1).unwrap());
    system.set_container(group, container).unwrap();
    system.set_iommu(container, TYPE1).unwrap();
    system.map_dma(container, &map_of(0, 4)).unwrap();
    assert_eq!(system.unmap_dma(container, &unmap_of(PAGE, 1)).unwrap(), 0);
    assert_eq!(system.unmap_dma(container, &unmap_of(0, 1)).unwrap(), 4 * PAGE);
}

#[test]
fn the_flag_all_unmaps_everything() {
    let all = UnmapDma { flags: 2, ..unmap_of(0, 0) };
    for (kernel, expected) in [(Kernel::Linux5_4, None), (Kernel::Linux6_1, Some(2 * PAGE))] {
        let Ready { system, container, .. } = ready(host(kernel));
        for at in [0, 1 << 30] {
            system.map_dma(container, &map_of(at, 1)).unwrap();
        }
        assert_eq!(system.unmap_dma(container, &all).ok(), expected, "{kernel:?}");
    }
}

#[test]
fn a_vaddr_is_invalidated_and_renewed() {
    let Ready { system, container, .. } = ready(host(Kernel::Linux6_12));
    for at in [0, 2] {
        system.map_dma(container, &map_of(at * PAGE, 1)).unwrap();
    }
    let take = |at, pages| UnmapDma { flags: 4, ..unmap_of(at, pages) };
    let give = |at, pages| MapDma { flags: 4, ..map_of(at, pages) };
    assert_eq!(system.unmap_dma(container, &take(2 * PAGE, 1)).unwrap(), PAGE);
    fails(system.unmap_dma(container, &take(0, 3)), libc::EINVAL);
    fails(system.map_dma(container, &give(0, 1)), libc::EINVAL);
    fails(system.map_dma(container, &give(2 * PAGE, 2)), libc::EINVAL);
    system.map_dma(container, &give(2 * PAGE, 1)).unwrap();
    assert_eq!(system.unmap_dma(container, &take(0, 3)).unwrap(), 2 * PAGE);
    assert_eq!(system.mappings(container).unwrap().len(), 2, "still mapped");
}

#[test]
fn a_group_cannot_join_mappings_without_a_vaddr() {
    let Ready { system, container, .. } = ready(host(Kernel::Linux6_12));
    let nics = system.open_group(2).unwrap();
    system.map_dma(container, &map_of(0, 1)).unwrap();
    let take = UnmapDma { flags: 4, ..unmap_of(0, 1) };
    system.unmap_dma(container, &take).unwrap();
    fails(system.set_container(nics, container), libc::EBUSY);
    system.map_dma(container, &MapDma { flags: 4, ..map_of(0, 1) }).unwrap();
    system.set_container(nics, container).unwrap();
}

#[test]
fn a_mapping_beyond_the_limit_is_enospc() {
    let mut description = host(Kernel::Linux6_12);
    description.dma_entries = 2;
    let Ready { system, container, .. } = ready(description);
    for at in [0, 1] {
        system.map_dma(container, &map_of(at * PAGE, 1)).unwrap();
    }
    fails(system.map_dma(container, &map_of(0, 1)), libc::EEXIST);
    fails(system.map_dma(container, &map_of(2 * PAGE, 1)), libc::ENOSPC);
    system.unmap_dma(container, &unmap_of(0, 1)).unwrap();
    system.map_dma(container, &map_of(2 * PAGE, 1)).unwrap();
}

#[test]
fn locked_memory_is_counted_by_mapping_and_limited() {
    let mut description = host(Kernel::Linux6_12);
    description.locked_memory = Some(3 * PAGE + 1);
    description.memory = vec![(16 * PAGE..24 * PAGE, true)];
    let Ready { system, container, .. } = ready(description);
    system.map_dma(container, &map_of(0, 2)).unwrap();
    fails(system.map_dma(container, &map_of(4 * PAGE, 2)), libc::ENOMEM);
    assert_eq!(system.locked_memory(), 2 * PAGE);
    system.map_dma(container, &map_of(4 * PAGE, 1)).unwrap();
    fails(system.map_dma(container, &map_of(8 * PAGE, 1)), libc::ENOMEM);
    let hole = MapDma { vaddr: 24 * PAGE, ..map_of(8 * PAGE, 1) };
    fails(system.map_dma(container, &hole), libc::EFAULT);
}

#[test]
fn memory_that_cannot_be_written_is_mapped_for_reads_only() {
    let mut description = host(Kernel::Linux6_12);
    description.memory = vec![(16 * PAGE..17 * PAGE, true), (17 * PAGE..18 * PAGE, false)];
    let Ready { system, container, .. } = ready(description);
    let both = map_of(0, 2);
    fails(system.map_dma(container, &both), libc::EFAULT);
    fails(system.map_dma(container, &MapDma { flags: 2, ..both }), libc::EFAULT);
    system.map_dma(container, &MapDma { flags: 1, ..both }).unwrap();
    fails(system.map_dma(container, &MapDma { flags: 1, ..map_of(8 * PAGE, 3) }), libc::EFAULT);
}

#[test]
fn the_last_group_removes_all_mappings() {
    let Ready { system, container, group } = ready(host(Kernel::Linux6_12));
    let nics = system.open_group(2).unwrap();
    system.set_container(nics, container).unwrap();
    system.map_dma(container, &map_of(0, 1)).unwrap();
    system.unset_container(group).unwrap();
    assert_eq!(system.locked_memory(), PAGE);
    system.close(nics).unwrap();
    assert_eq!((system.locked_memory(), system.mappings(container).unwrap()), (0, vec![]));
    fails(system.map_dma(container, &map_of(0, 1)), libc::EINVAL);
}

#[test]
fn a_reserved_range_of_a_group_cannot_be_mapped() {
    let description = host(Kernel::Linux6_12).reserved(2, PAGE..2 * PAGE);
    let Ready { system, container, .. } = ready(description);
    system.map_dma(container, &map_of(PAGE, 1)).unwrap();
    let nics = system.open_group(2).unwrap();
    fails(system.set_container(nics, container), libc::EINVAL);
    system.unmap_dma(container, &unmap_of(PAGE, 1)).unwrap();
    system.set_container(nics, container).unwrap();
    fails(system.map_dma(container, &map_of(PAGE, 1)), libc::EINVAL);
}

#[test]
fn iommu_info_has_the_layout_of_each_kernel() {
    for (kernel, size, avail_at) in [
        (Kernel::Linux5_4, 24 + 48, None),
        (Kernel::Linux6_1, 24 + 32 + 12 + 48, Some(64)),
        (Kernel::Linux6_12, 24 + 32 + 16 + 48, Some(64)),
    ] {
        let Ready { system, container, .. } = ready(host(kernel));
        system.map_dma(container, &map_of(0, 1)).unwrap();
        let mut short = 24_u32.to_ne_bytes().to_vec();
        short.resize(24, 0);
        system.iommu_info(container, &mut short).unwrap();
        assert_eq!(info::word(&short, 0), size, "{kernel:?}");
        let mut bytes = size.to_ne_bytes().to_vec();
        bytes.resize(size as usize, 0);
        system.iommu_info(container, &mut bytes).unwrap();
        assert_eq!(word64(&bytes, 8), 4096 | 2 << 20);
        assert_eq!(info::word(&bytes, 16), 24);
        let available = avail_at.map(|at| info::word(&bytes, at));
        assert_eq!(available, avail_at.map(|_| 65534), "{kernel:?}");
        let last = word64(&bytes, bytes.len() - 8);
        assert_eq!(last, (1 << 39) - 1, "{kernel:?}");
    }
}

#[test]
fn iommu_info_needs_its_oldest_fields() {
    let Ready { system, container, .. } = ready(host(Kernel::Linux6_12));
    fails(system.iommu_info(container, &mut [15, 0, 0, 0]), libc::EINVAL);
}

proptest! {
    /// After any calls the mappings do not overlap, are inside the IOVA ranges, and are exactly
    /// what is locked.
    #[test]
    fn mappings_stay_sound(
        calls in prop::collection::vec((any::<bool>(), 0_u64..12, 0_u64..5, 0_u32..8), 1..60),
    ) {
        let Ready { system, container, .. } = ready(host(Kernel::Linux6_12));
        let base = 0xfede_a000;
        for (maps, at, pages, flags) in calls {
            let iova = base + at * 16 * PAGE;
            let (map, unmap) = (map_of(iova, pages * 16), unmap_of(iova, pages * 16));
            let _ = match maps {
                true => system.map_dma(container, &MapDma { flags, ..map }),
                false => system.unmap_dma(container, &UnmapDma { flags, ..unmap }).map(drop),
            };
            let mappings = system.mappings(container).unwrap();
            let ordered = mappings.windows(2).all(|pair| pair[0].end <= pair[1].start);
            prop_assert!(ordered, "{mappings:?}");
            let msi = 0xfee0_0000..0xfef0_0000;
            let is_clear = |range: &Range<u64>| !crate::ranges::overlap(range, &msi);
            prop_assert!(mappings.iter().all(is_clear));
            let total: u64 = mappings.iter().map(|range| range.end - range.start).sum();
            prop_assert_eq!(system.locked_memory(), total);
        }
    }
}

/// The memory of a device at the process's pages 16 and 17.
const BAR: Range<u64> = 16 * PAGE..18 * PAGE;

#[test]
fn type1_maps_the_memory_of_a_device_and_locks_none_of_it() {
    let Ready { system, container, .. } = ready(host(Kernel::Linux7_3));
    system.mapped_at(BAR);
    system.map_dma(container, &map_of(0, 2)).unwrap();
    assert_eq!(system.locked_memory(), 0);
    system.map_dma(container, &map_of(4 * PAGE, 3)).unwrap();
    assert_eq!(system.locked_memory(), PAGE, "the page behind the device's");
    system.munmap(&BAR);
    system.unmap_dma(container, &unmap_of(0, 16)).unwrap();
    assert_eq!(system.locked_memory(), 0, "the unmap releases what the map locked");
    system.map_dma(container, &map_of(0, 2)).unwrap();
    assert_eq!(system.locked_memory(), 2 * PAGE, "ordinary memory again");
}

#[test]
fn a_munmap_leaves_the_rest_of_a_device() {
    let Ready { system, container, .. } = ready(host(Kernel::Linux7_3));
    system.mapped_at(15 * PAGE..19 * PAGE);
    system.munmap(&(16 * PAGE..17 * PAGE));
    system.map_dma(container, &map_of(0, 2)).unwrap();
    assert_eq!(system.locked_memory(), PAGE);
}

/// `struct vfio_iommu_type1_dirty_bitmap` with a range of pages, and a bitmap of ones behind it.
fn dirty(iova: u64, size: u64) -> Vec<u8> {
    let words = [48_u32, 4].into_iter().flat_map(u32::to_ne_bytes);
    let range = [iova, size, PAGE, 8, 0, u64::MAX];
    words.chain(range.into_iter().flat_map(u64::to_ne_bytes)).collect()
}

#[test]
fn all_pages_of_a_mapping_are_dirty_where_they_are_tracked() {
    for kernel in KERNELS {
        let Ready { system, container, .. } = ready(host(kernel));
        let start = system.ioctl(container, 17, &mut words(&[8, 1]), &mut Fd);
        if kernel == Kernel::Linux5_4 {
            fails(start, libc::ENOTTY);
            continue;
        }
        start.unwrap();
        for (iova, size) in [(0, 2 * PAGE), (3 * PAGE, PAGE)] {
            system
                .map_dma(container, &MapDma { argsz: 32, flags: 3, vaddr: PAGE, iova, size })
                .unwrap();
        }
        let mut bitmap = dirty(0, 8 * PAGE);
        system.dirty_pages(container, &mut bitmap).unwrap();
        assert_eq!(bitmap[48..], 0b1011_u64.to_ne_bytes());
        fails(system.dirty_pages(container, &mut dirty(0, PAGE)), libc::EINVAL);
        let past = system.dirty_pages(container, &mut dirty(0_u64.wrapping_sub(PAGE), 2 * PAGE));
        let overflows = kernel == Kernel::Linux7_3;
        fails(past, if overflows { libc::EOVERFLOW } else { libc::EINVAL });
        system.ioctl(container, 17, &mut words(&[8, 2]), &mut Fd).unwrap();
        fails(system.dirty_pages(container, &mut dirty(0, 8 * PAGE)), libc::EINVAL);
    }
}
