//! Groups in containers, on the model: memory is mapped once for all that share one, and in step for those that do
//! not.
#![allow(clippy::arithmetic_side_effects, clippy::unwrap_used, reason = "a test that fails panics")]

use std::sync::Arc;

use proptest::prelude::*;
use vfio_passthrough::dma::Mapping;
use vfio_passthrough::host::HostMemory;
use vfio_passthrough::model::{Call, Containers, Faults};
use vfio_passthrough::{ByteRange, Iova, PciAddress};
use vm_memory::{GuestAddress, GuestRegionMmap};

const SIZE: u64 = 1 << 20;

fn memory() -> Arc<dyn HostMemory> {
    Arc::new(GuestRegionMmap::<()>::from_range(GuestAddress(0), 1 << 20, None).unwrap())
}

fn setup() -> (Arc<Faults>, Containers) {
    let faults = Arc::new(Faults::default());
    (faults.clone(), Containers::new(faults))
}

fn device(group: u32) -> PciAddress {
    let group = group & 7;
    format!("01:00.{group}").parse().unwrap()
}

fn attach(containers: &Containers, group: u32) {
    containers.attach(device(group), group).unwrap();
}

fn map(containers: &Containers, piece: u64) -> Mapping {
    containers.dma().map(Iova(piece * SIZE), memory()).unwrap()
}

fn pieces(pieces: &[u64]) -> Vec<ByteRange> {
    let range = |piece: &u64| ByteRange::new(piece * SIZE, SIZE).unwrap();
    pieces.iter().map(range).collect()
}

#[test]
fn sixteen_groups_share_what_is_mapped_once() {
    let (faults, containers) = setup();
    attach(&containers, 0);
    let _mappings = [map(&containers, 0), map(&containers, 4)];
    (1..16).for_each(|group| attach(&containers, group));
    assert_eq!((faults.made(Call::MapDma), faults.made(Call::OpenContainer)), (2, 0));
    assert_eq!((faults.made(Call::SetContainer), faults.made(Call::SetIommu)), (16, 1));
    assert_eq!(containers.mappings(), [pieces(&[0, 4])]);
}

#[test]
fn a_group_that_cannot_share_is_kept_in_step_in_a_container_of_its_own() {
    let (_, containers) = setup();
    containers.refuse(2);
    attach(&containers, 1);
    let first = map(&containers, 0);
    attach(&containers, 2);
    let second = map(&containers, 1);
    assert_eq!(containers.mappings(), [pieces(&[0, 1]), pieces(&[0, 1])]);
    drop(first);
    assert_eq!(containers.mappings(), [pieces(&[1]), pieces(&[1])]);
    second.unmap().unwrap();
    assert_eq!(containers.mappings(), [vec![], vec![]]);
}

#[test]
fn all_that_is_mapped_comes_back_with_the_last_group() {
    let (_, containers) = setup();
    attach(&containers, 1);
    let stays = map(&containers, 0);
    let goes = map(&containers, 1);
    containers.detach(1);
    assert_eq!(containers.mappings(), [vec![]], "the kernel has no IOMMU for it");
    drop(goes);
    let comes = map(&containers, 2);
    attach(&containers, 3);
    assert_eq!(containers.mappings(), [pieces(&[0, 2])]);
    drop((stays, comes));
    assert_eq!(containers.mappings(), [vec![]]);
}

#[test]
fn without_a_group_mappings_do_not_overlap_either() {
    let (faults, containers) = setup();
    let _first = map(&containers, 0);
    let error = containers.dma().map(Iova(SIZE / 2), memory()).err().unwrap();
    assert!(error.to_string().contains("overlaps a mapping"), "{error}");
    assert_eq!(faults.made(Call::MapDma), 0);
}

#[test]
fn a_group_for_which_memory_cannot_be_mapped_is_an_error_that_says_so() {
    let (faults, containers) = setup();
    let _mapping = map(&containers, 0);
    faults.fail(Call::MapDma, 0, libc::ENOMEM);
    let error = containers.attach(device(7), 7).unwrap_err().to_string();
    let begin =
        "0000:01:00.7: IOMMU group 7: cannot map 0x0-0xfffff for DMA: Cannot allocate memory";
    assert!(error.starts_with(begin) && error.contains("ulimit -l"), "{error}");
    attach(&containers, 7);
    assert_eq!(containers.mappings(), [pieces(&[0])], "and then it works");
}

/// What may happen to groups and memory.
#[derive(Clone, Copy, Debug)]
enum Step {
    Attach(u32),
    Detach(u32),
    Map(u64),
    Unmap(u64),
    /// The next call that maps fails.
    Fail,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..4_u32).prop_map(Step::Attach),
        (0..4_u32).prop_map(Step::Detach),
        (0..6_u64).prop_map(Step::Map),
        (0..6_u64).prop_map(Step::Unmap),
        Just(Step::Fail),
    ]
}

proptest! {
    /// Groups 2 and 3 share with nobody. Whatever happens, each container with a group has all mappings, and the
    /// others have none.
    #[test]
    fn containers_are_in_step_whatever_happens(steps in prop::collection::vec(step(), 1..60)) {
        let (faults, containers) = setup();
        [2, 3].into_iter().for_each(|group| containers.refuse(group));
        let (mut attached, mut mapped) = (std::collections::BTreeSet::new(), std::collections::BTreeMap::new());
        for step in steps {
            match step {
                Step::Attach(group) if attached.contains(&group) => {}
                Step::Attach(group) => {
                    let result = containers.attach(device(group), group);
                    attached.extend(result.is_ok().then_some(group));
                }
                Step::Detach(group) if attached.remove(&group) => containers.detach(group),
                Step::Map(piece) if !mapped.contains_key(&piece) => {
                    if let Ok(mapping) = containers.dma().map(Iova(piece * SIZE), memory()) {
                        mapped.insert(piece, mapping);
                    }
                }
                Step::Unmap(piece) => drop(mapped.remove(&piece)),
                Step::Fail => faults.fail(Call::MapDma, 0, libc::ENOSPC),
                _ => {}
            }
            let all = pieces(&mapped.keys().copied().collect::<Vec<_>>());
            let used = containers.mappings().into_iter().filter(|own| !own.is_empty()).collect::<Vec<_>>();
            let alone = attached.iter().filter(|group| **group > 1).count();
            let shared = attached.len() - alone;
            // A group that came first shares with those that it does not refuse, though they refuse nobody.
            let fewest = usize::from(!attached.is_empty()) * alone.max(1);
            let most = alone + usize::from(shared > 0);
            prop_assert!(used.iter().all(|own| *own == all), "{:?} {:?}", used, all);
            if !all.is_empty() {
                prop_assert!((fewest..=most).contains(&used.len()), "{:?} {}", attached, used.len());
            }
        }
    }
}
