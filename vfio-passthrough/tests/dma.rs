//! DMA mappings on the model: all pieces are mapped or none, and memory lives as long as its
//! mapping in the kernel.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test that fails panics"
)]

use std::sync::Arc;

use vfio_passthrough::host::HostMemory;
use vfio_passthrough::model::{Call, Faults, Iommu};
use vfio_passthrough::{ByteRange, DmaSpace, Iova};
use vm_memory::{GuestAddress, GuestRegionMmap};

const MIB: usize = 1 << 20;

fn memory() -> Arc<GuestRegionMmap<()>> {
    Arc::new(GuestRegionMmap::from_range(GuestAddress(0), MIB, None).unwrap())
}

fn setup() -> (Arc<Faults>, Arc<Iommu>, DmaSpace) {
    let faults = Arc::new(Faults::default());
    let iommu = Arc::new(Iommu::new(faults.clone()));
    (faults, iommu.clone(), DmaSpace::new(iommu))
}

fn at(iovas: &[u64]) -> Vec<(Iova, Arc<dyn HostMemory>)> {
    iovas.iter().map(|iova| (Iova(*iova), memory() as Arc<dyn HostMemory>)).collect()
}

#[test]
fn a_mapping_lives_as_long_as_its_value() {
    let (faults, iommu, space) = setup();
    let mappings = space.map_all(at(&[0, 0x1_0000_0000])).unwrap();
    assert_eq!(
        iommu.mappings(),
        mappings.iter().map(|mapping| mapping.range()).collect::<Vec<_>>()
    );
    assert_eq!(faults.made(Call::MapDma), 2, "one call each");
    drop(mappings);
    assert_eq!(iommu.mappings(), []);
}

#[test]
fn a_failed_batch_leaves_no_mapping() {
    let (faults, iommu, space) = setup();
    faults.fail(Call::MapDma, 2, libc::ENOMEM);
    let error = space.map_all(at(&[0, 0x10_0000, 0x20_0000, 0x30_0000])).err().unwrap().to_string();
    assert!(
        error.starts_with("cannot map 0x200000-0x2fffff for DMA: ") && error.contains("ulimit -l"),
        "{error}"
    );
    assert_eq!(iommu.mappings(), []);
    assert_eq!((faults.made(Call::MapDma), faults.made(Call::UnmapDma)), (3, 2));
}

#[test]
fn reports_the_remedy_of_a_refused_mapping() {
    for (errno, hint) in [
        (
            libc::ENOMEM,
            "; the limit on locked memory is too low ('ulimit -l'; iommufd counts what all processes \
             of the user have locked), or the host is out of memory",
        ),
        (libc::EEXIST, "; the range overlaps a mapping"),
        (
            libc::ENOSPC,
            "; the container is full: vfio_iommu_type1 has the parameter dma_entry_limit (65535)",
        ),
        (libc::EFAULT, ""),
    ] {
        let (faults, _, space) = setup();
        faults.fail(Call::MapDma, 0, errno);
        let error = space.map(Iova(0x8_0000), memory()).err().unwrap().to_string();
        let why = std::io::Error::from_raw_os_error(errno);
        assert_eq!(error, format!("cannot map 0x80000-0x17ffff for DMA: {why}{hint}"));
    }
}

#[test]
fn refuses_addresses_out_of_reach_before_it_maps_anything() {
    let (faults, _, space) = setup();
    for iova in [1_u64 << 39, 0xfed8_0000, 0xfee0_0000, u64::MAX] {
        let error = space.map_all(at(&[0, iova])).err().unwrap();
        assert_eq!(faults.made(Call::MapDma), 0, "{error}");
    }
}

#[test]
fn returns_memory_only_after_the_kernel_unmapped_it() {
    let (faults, iommu, space) = setup();
    let region = memory();
    let mapping = space.map(Iova(0), region.clone()).unwrap();
    assert_eq!(mapping.unmap().unwrap().host_address(), region.as_ptr());
    let mapping = space.map(Iova(0), region.clone()).unwrap();
    faults.fail(Call::UnmapDma, 0, libc::EIO);
    let error = mapping.unmap().err().unwrap().to_string();
    assert!(error.contains("its memory is kept"), "{error}");
    assert_eq!(Arc::strong_count(&region), 2, "leaked, not freed");
    assert_eq!(iommu.mappings(), [ByteRange::between(0, MIB as u64)]);
}

#[test]
fn a_failed_unmap_keeps_the_memory_and_can_be_repeated() {
    let (faults, iommu, space) = setup();
    let region = memory();
    let mut mapping = space.map(Iova(0), region.clone()).unwrap();
    faults.fail(Call::UnmapDma, 0, libc::EIO);
    assert!(mapping.try_unmap().is_err());
    assert!(Arc::strong_count(&region) > 1, "kept");
    assert_eq!(iommu.mappings().len(), 1);
    mapping.try_unmap().unwrap();
    mapping.try_unmap().unwrap();
    drop(mapping);
    assert_eq!((Arc::strong_count(&region), faults.made(Call::UnmapDma)), (1, 2));
    assert_eq!(iommu.mappings(), []);
}

/// Adjacent pieces of one memory, each with its own value.
fn pieces(count: usize) -> Vec<Arc<dyn HostMemory>> {
    let whole: GuestRegionMmap<()> =
        GuestRegionMmap::from_range(GuestAddress(0), count * MIB, None).unwrap();
    let whole = Arc::new(whole);
    (0..count).map(|index| Arc::new(Piece(whole.clone(), index)) as Arc<dyn HostMemory>).collect()
}

struct Piece(Arc<GuestRegionMmap<()>>, usize);

// SAFETY: the bytes belong to a region, which the value holds and which fulfils the same contract.
unsafe impl HostMemory for Piece {
    fn host_address(&self) -> *mut u8 {
        self.0.as_ptr().wrapping_add(self.1 * MIB)
    }

    fn size(&self) -> u64 {
        MIB as u64
    }
}

#[test]
fn maps_memory_that_is_adjacent_in_both_address_spaces_with_one_call() {
    let mib = |index: u64| Iova(index << 20);
    // The IOVA of each piece, and the expected mappings.
    let cases = [
        ([0, 1, 2, 3], vec![(0, 4)]),
        ([0, 1, 3, 4], vec![(0, 2), (3, 5)]),
        ([1, 0, 2, 3], vec![(0, 1), (1, 2), (2, 4)]),
        ([3, 2, 1, 0], vec![(0, 1), (1, 2), (2, 3), (3, 4)]),
    ];
    for (places, expected) in cases {
        let (faults, iommu, space) = setup();
        // `map_all` accepts any order.
        let memory = places.map(mib).into_iter().zip(pieces(4)).rev();
        let mappings = space.map_all(memory).unwrap();
        let expected: Vec<_> = expected
            .iter()
            .map(|(start, end)| ByteRange::between(start << 20, end << 20))
            .collect();
        assert_eq!(iommu.mappings(), expected, "{places:?}");
        assert_eq!(faults.made(Call::MapDma), expected.len() as u64);
        drop(mappings);
        assert_eq!(iommu.mappings(), []);
    }
}

#[test]
fn a_joined_mapping_returns_the_whole_memory_and_holds_its_pieces() {
    let (_, _, space) = setup();
    let memory = pieces(2);
    let weak: Vec<_> = memory.iter().map(Arc::downgrade).collect();
    let mut mappings = space.map_all([Iova(0), Iova(MIB as u64)].into_iter().zip(memory)).unwrap();
    assert!(weak.iter().all(|piece| piece.strong_count() == 1));
    let whole = mappings.pop().unwrap().unmap().unwrap();
    assert_eq!((whole.size(), mappings.len()), (2 * MIB as u64, 0));
    drop(whole);
    assert!(weak.iter().all(|piece| piece.strong_count() == 0));
}

#[test]
fn refuses_too_many_mappings_before_it_maps_anything() {
    let faults = Arc::new(Faults::default());
    let iommu = Arc::new(Iommu::new(faults.clone()).with_limit(3));
    let space = DmaSpace::new(iommu.clone());
    let _first = space.map(Iova(0), memory()).unwrap();
    let error = space.map_all(at(&[0x100_0000, 0x200_0000, 0x300_0000])).err().unwrap().to_string();
    let begin = "3 mappings for DMA are needed, and the container takes 2 more; ";
    assert!(error.starts_with(begin) && error.contains("dma_entry_limit"), "{error}");
    assert_eq!(faults.made(Call::MapDma), 1);
    let _two = space.map_all(at(&[0x100_0000, 0x200_0000])).unwrap();
}

/// A VMM plugs and unplugs memory, and calls fail: the other mappings stay.
#[test]
fn maps_and_unmaps_memory_of_a_running_guest() {
    let (faults, iommu, space) = setup();
    let _boot = space.map_all(at(&[0])).unwrap();
    let boot = iommu.mappings();
    for round in 0..8 {
        let module = pieces(2);
        let held = module.iter().map(Arc::downgrade).collect::<Vec<_>>();
        let place = |index: u64| Iova((64 + index) << 20);
        if round % 2 == 1 {
            faults.fail(Call::MapDma, 0, libc::ENOMEM);
            let refused = space.map_all([0, 1].map(place).into_iter().zip(module.clone()));
            assert!(refused.is_err());
            assert_eq!(iommu.mappings(), boot, "unchanged");
        }
        // Each piece is mapped alone, so that it can be unmapped alone.
        let mut modules: Vec<_> = (0..)
            .zip(module)
            .map(|(index, piece)| space.map(place(index), piece).unwrap())
            .collect();
        assert_eq!(iommu.mappings().len(), 3);
        drop(modules.remove(0).unmap().unwrap());
        assert_eq!(held[0].strong_count(), 0, "the memory is freed");
        let mut last = modules.remove(0);
        faults.fail(Call::UnmapDma, 0, libc::EBUSY);
        assert!(last.try_unmap().is_err());
        assert!(held[1].strong_count() > 0, "devices can still access it");
        last.try_unmap().unwrap();
        assert_eq!((held[1].strong_count(), iommu.mappings()), (0, boot.clone()));
    }
}

#[test]
fn reports_overlaps_that_the_kernel_refuses() {
    let (_, _, space) = setup();
    let _first = space.map(Iova(0), memory()).unwrap();
    let error = space.map(Iova(0x8_0000), memory()).err().unwrap().to_string();
    assert!(error.contains("overlaps a mapping"), "{error}");
}
