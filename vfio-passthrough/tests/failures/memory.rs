//! Failures of mapping memory and of unmapping it: all pieces are mapped or none, and memory is
//! freed or leaked.

use std::sync::{Arc, Weak};

use vfio_passthrough::host::HostMemory;
use vfio_passthrough::model::{Faults, Iommu};
use vfio_passthrough::{DmaSpace, Iova, dma};
use vm_memory::GuestRegionMmap;

use super::setup::memory;
use super::*;

/// An address space with one piece of memory, which stays mapped.
struct Space {
    faults: Arc<Faults>,
    iommu: Arc<Iommu>,
    space: DmaSpace,
    _first: dma::Mapping,
}

fn space() -> Space {
    let faults = Arc::new(Faults::default());
    let iommu = Arc::new(Iommu::new(faults.clone()));
    let space = DmaSpace::new(iommu.clone());
    let _first = space.map(Iova(0), memory()).unwrap();
    Space { faults, iommu, space, _first }
}

const PIECES: u64 = 4;

/// References to pieces of memory that do not keep them alive.
type Pieces = Vec<Weak<GuestRegionMmap<()>>>;

/// Maps pieces of memory that nothing else holds.
fn add(space: &Space) -> (Pieces, Result<Vec<dma::Mapping>, dma::Error>) {
    let pieces: Vec<_> = (0..PIECES).map(|_| memory()).collect();
    let weak = pieces.iter().map(Arc::downgrade).collect();
    let iova = |index: u64| Iova((index + 1) << 20);
    let pieces = (0..).map(iova).zip(pieces.into_iter().map(|piece| piece as Arc<dyn HostMemory>));
    (weak, space.space.map_all(pieces.collect::<Vec<_>>()))
}

fn alive(pieces: &[Weak<GuestRegionMmap<()>>]) -> usize {
    pieces.iter().filter(|piece| piece.strong_count() != 0).count()
}

/// Maps memory while `calls` fail. Unmap calls of the undo can be among them.
fn adding(calls: std::ops::Range<u64>, fault: Fault) -> Result<Option<Call>, String> {
    let space = space();
    lines::keep();
    space.faults.inject(calls, fault);
    let (pieces, added) = add(&space);
    let failed = space.faults.failed();
    let (mapped, undone) = (
        space.iommu.mappings().len() - 1,
        failed.iter().filter(|call| **call == Call::UnmapDma).count(),
    );
    if let Some(first) = failed.first() {
        let error = added.as_ref().err().map(ToString::to_string).unwrap_or_default();
        check(names(&error, "", *first, fault), || format!("{first:?} is not reported: {error}"))?;
        let range = if *first == Call::MapDma { "0x" } else { "" };
        check(error.contains(range), || format!("{error} names no range"))?;
        let leaks =
            lines::taken().iter().filter(|line| line.contains("its memory is leaked")).count();
        let left = (mapped, alive(&pieces), leaks);
        check(left == (undone, undone, undone), || {
            format!("{undone} were not undone, left: {left:?}")
        })?;
    }
    drop(added);
    check(alive(&pieces) == undone, || "memory is left".to_owned())?;
    Ok(failed.first().copied())
}

/// Unmaps each piece alone while `calls` fail.
fn removing(calls: std::ops::Range<u64>, fault: Fault) -> Result<Option<Call>, String> {
    let space = space();
    let (pieces, added) = add(&space);
    space.faults.inject(calls, fault);
    let errors: Vec<String> = added
        .unwrap()
        .into_iter()
        .filter_map(|mapping| Some(mapping.unmap().err()?.to_string()))
        .collect();
    let failed = space.faults.failed();
    for error in &errors {
        let reported =
            names(error, "0x", Call::UnmapDma, fault) && error.contains("its memory is kept");
        check(reported, || error.clone())?;
    }
    let left = (errors.len(), space.iommu.mappings().len() - 1, alive(&pieces));
    check(left == (failed.len(), failed.len(), failed.len()), || {
        format!("{failed:?}: left: {left:?}")
    })?;
    Ok(failed.first().copied())
}

#[test]
fn maps_all_memory_or_none_and_leaks_what_cannot_be_unmapped() {
    let calls = PIECES + 1;
    let points = [
        sweep("memory is added", calls, |call, fault| adding(call..call + 1, fault)),
        sweep("memory is added, and not undone", calls, |call, fault| {
            adding(call..u64::MAX, fault)
        }),
        sweep("memory is removed", PIECES, |call, fault| removing(call..call + 1, fault)),
        sweep("memory is not removed", PIECES, |call, fault| removing(call..u64::MAX, fault)),
    ];
    let points: u64 = points.into_iter().sum();
    println!("memory: {points} points");
    assert!(points > 100, "{points}");
}
