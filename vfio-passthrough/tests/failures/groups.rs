//! Groups of which one shares with no other, and memory: in step, or not at all, at each failure.

use std::sync::{Arc, Weak};

use vfio_passthrough::Iova;
use vfio_passthrough::dma::Mapping;
use vfio_passthrough::host::HostMemory;
use vfio_passthrough::model::{Containers, Faults};
use vm_memory::GuestRegionMmap;

use super::setup::memory;
use super::*;

/// A container with a group and two pieces of memory in it, for a second group that cannot be in it.
struct Host {
    faults: Arc<Faults>,
    containers: Containers,
    pieces: Vec<Weak<GuestRegionMmap<()>>>,
    mappings: Vec<Mapping>,
}

impl Host {
    fn new() -> Self {
        let faults = Arc::new(Faults::default());
        let containers = Containers::new(faults.clone());
        containers.refuse(2);
        containers.attach("01:00.0".parse().unwrap(), 1).unwrap();
        let mut host = Self { faults, containers, pieces: Vec::new(), mappings: Vec::new() };
        (0..2).for_each(|_| host.map().unwrap());
        host
    }

    /// One piece more, which nothing else holds.
    fn map(&mut self) -> Result<(), String> {
        let piece = memory();
        let iova = Iova((self.pieces.len() as u64) << 20);
        self.pieces.push(Arc::downgrade(&piece));
        let mapping = self
            .containers
            .dma()
            .map(iova, piece as Arc<dyn HostMemory>)
            .map_err(|error| error.to_string())?;
        self.mappings.push(mapping);
        Ok(())
    }

    fn attach(&self) -> Result<(), String> {
        let attached = self.containers.attach("02:00.0".parse().unwrap(), 2);
        attached.map_err(|error| error.to_string())
    }

    fn alive(&self) -> usize {
        self.pieces.iter().filter(|piece| piece.strong_count() != 0).count()
    }

    /// What is mapped in a container that failed to let go is alive, and a line says so; all else is in step.
    fn check(self, failed: bool, kept: usize) -> Result<(), String> {
        let lines = lines::taken();
        let told = lines.iter().filter(|line| line.contains("its memory is leaked")).count();
        check(told == kept, || format!("{kept} were kept, {told} lines"))?;
        let counts: Vec<_> = self.containers.mappings().iter().map(Vec::len).collect();
        let (first, second) = (counts[0], counts.get(1).copied().unwrap_or(0));
        let expected = if failed { kept } else { first };
        check(first >= self.mappings.len() && second == expected, || {
            format!("mapped {counts:?}, kept {kept}")
        })?;
        self.faults.heal();
        let Self { pieces, mappings, .. } = self;
        drop(mappings);
        let alive = pieces.iter().filter(|piece| piece.strong_count() != 0).count();
        check(alive <= kept, || format!("{alive} alive, {kept} kept"))
    }
}

fn kept(struck: &[Call]) -> usize {
    struck.iter().filter(|call| **call == Call::UnmapDma).count()
}

/// `calls` fail as a group is attached that cannot share.
fn attaching(calls: std::ops::Range<u64>, fault: Fault) -> Result<Option<Call>, String> {
    let host = Host::new();
    lines::keep();
    host.faults.strike(calls, fault);
    let attached = host.attach();
    let struck = host.faults.struck();
    let failed = attached.is_err();
    if let Err(error) = &attached {
        let told = struck.iter().any(|call| names(error, "", *call, fault));
        check(told, || format!("{struck:?} is not told: {error}"))?;
    }
    // Refused by the container of the other it is all the same.
    let mended = struck.iter().all(|call| *call == Call::SetContainer);
    check(failed || mended, || format!("{struck:?} and attached"))?;
    host.check(failed, kept(&struck))?;
    Ok(struck.first().copied())
}

/// `calls` fail as memory is mapped for both.
fn mapping(calls: std::ops::Range<u64>, fault: Fault) -> Result<Option<Call>, String> {
    let mut host = Host::new();
    host.attach()?;
    lines::keep();
    host.faults.strike(calls, fault);
    let mapped = host.map();
    let struck = host.faults.struck();
    if let (Some(first), Err(error)) = (struck.first(), &mapped) {
        check(names(error, "0x200000-", *first, fault), || error.clone())?;
    }
    check(mapped.is_ok() == struck.is_empty(), || format!("{struck:?}"))?;
    let counts: Vec<_> = host.containers.mappings().iter().map(Vec::len).collect();
    let whole = if mapped.is_ok() { 3 } else { 2 };
    check(counts == [whole + kept(&struck), whole], || format!("mapped {counts:?}"))?;
    check(host.alive() == whole + kept(&struck), || "freed, or left".to_owned())?;
    Ok(struck.first().copied())
}

/// `calls` fail as memory is unmapped from both, and as the second group leaves.
fn ending(calls: std::ops::Range<u64>, fault: Fault, leave: bool) -> Result<Option<Call>, String> {
    let mut host = Host::new();
    host.attach()?;
    lines::keep();
    host.faults.strike(calls, fault);
    if leave {
        host.containers.detach(2);
    } else {
        host.mappings.clear();
    }
    let struck = host.faults.struck();
    let told = lines::taken().iter().filter(|line| line.contains("its memory is leaked")).count();
    let counts: usize = host.containers.mappings().iter().map(Vec::len).sum();
    let stay = if leave { 2 } else { 0 };
    check(counts == stay + struck.len() && told == struck.len(), || {
        format!("{counts} are mapped, {told} told: {struck:?}")
    })?;
    host.faults.heal();
    host.mappings.clear();
    let leaked = host.alive();
    check(leaked.min(1) == struck.len().min(1) && leaked <= struck.len(), || {
        format!("{leaked} are leaked: {struck:?}")
    })?;
    Ok(struck.first().copied())
}

#[test]
fn containers_are_in_step_or_as_before_and_what_the_kernel_keeps_leaks() {
    // Refused, opened, SET_CONTAINER, SET_IOMMU, two pieces of memory.
    let points = [
        sweep("a group gets its own container", 6, |call, fault| attaching(call..call + 1, fault)),
        sweep("a group gets none, and nothing is undone", 6, |call, fault| {
            attaching(call..u64::MAX, fault)
        }),
        sweep("memory is mapped in step", 2, |call, fault| mapping(call..call + 1, fault)),
        sweep("memory is not mapped, nor undone", 2, |call, fault| mapping(call..u64::MAX, fault)),
        sweep("memory is unmapped in step", 4, |call, fault| ending(call..call + 1, fault, false)),
        sweep("a group leaves", 2, |call, fault| ending(call..call + 1, fault, true)),
        sweep("a group leaves, and nothing is let go", 2, |call, fault| {
            ending(call..u64::MAX, fault, true)
        }),
    ];
    println!("groups: {} points", points.into_iter().sum::<u64>());
}
