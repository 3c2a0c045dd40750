//! DMA mappings on the model: all or nothing, and memory that outlives what the kernel does not let go of.
#![allow(
    clippy::arithmetic_side_effects,
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
    iovas
        .iter()
        .map(|iova| (Iova(*iova), memory() as Arc<dyn HostMemory>))
        .collect()
}

#[test]
fn mappings_live_as_long_as_their_guards() {
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
fn a_batch_that_fails_half_way_leaves_no_mapping() {
    let (faults, iommu, space) = setup();
    faults.fail(Call::MapDma, 2, libc::ENOMEM);
    let error = space
        .map_all(at(&[0, 0x10_0000, 0x20_0000, 0x30_0000]))
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.starts_with("cannot map 0x200000-0x2fffff for DMA: ") && error.contains("ulimit -l"),
        "{error}"
    );
    assert_eq!(iommu.mappings(), []);
    assert_eq!((faults.made(Call::MapDma), faults.made(Call::UnmapDma)), (3, 2));
}

#[test]
fn what_the_iommu_cannot_reach_is_refused_before_anything_is_mapped() {
    let (faults, _, space) = setup();
    for iova in [1_u64 << 39, 0xfed8_0000, 0xfee0_0000, u64::MAX] {
        let error = space.map_all(at(&[0, iova])).err().unwrap();
        assert_eq!(faults.made(Call::MapDma), 0, "{error}");
    }
}

#[test]
fn memory_comes_back_when_the_kernel_confirmed_and_not_before() {
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
fn what_could_not_be_ended_keeps_its_memory_and_is_ended_later() {
    let (faults, iommu, space) = setup();
    let region = memory();
    let mut mapping = space.map(Iova(0), region.clone()).unwrap();
    faults.fail(Call::UnmapDma, 0, libc::EIO);
    assert!(mapping.end().is_err());
    assert!(Arc::strong_count(&region) > 1, "kept");
    assert_eq!(iommu.mappings().len(), 1);
    mapping.end().unwrap();
    mapping.end().unwrap();
    drop(mapping);
    assert_eq!((Arc::strong_count(&region), faults.made(Call::UnmapDma)), (1, 2));
    assert_eq!(iommu.mappings(), []);
}

#[test]
fn overlaps_are_the_kernels_to_refuse() {
    let (_, _, space) = setup();
    let _first = space.map(Iova(0), memory()).unwrap();
    let error = space.map(Iova(0x8_0000), memory()).err().unwrap().to_string();
    assert!(error.contains("overlaps a mapping"), "{error}");
}
