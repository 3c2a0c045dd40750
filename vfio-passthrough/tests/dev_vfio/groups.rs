//! Tests of groups in containers: memory is mapped once for all groups that share a container.
//! Several containers have the same mappings, also after a failure.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{MutexGuard, Weak};

use proptest::prelude::*;
use vfio_passthrough::context::{AssignedDevice, DeviceOptions, PreparedDevice};
use vfio_passthrough::dma::Mapping;

use super::libc::{MAP, OPEN_DEVICE, SET_CONTAINER, SET_IOMMU, set_world};
use super::*;

const SIZE: u64 = 1 << 20;
const GROUPS: u32 = 16;

fn device(group: u32) -> String {
    format!("0000:{:02x}:00.{}", 1 + group / 8, group % 8)
}

/// A host with a device in each group, and a container for them.
struct Setup {
    container: IommuContext,
    devices: BTreeMap<u32, Arc<AssignedDevice>>,
    /// The tree is removed at the end.
    _sysfs: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

/// The groups in `alone` cannot share a container.
fn setup(alone: &[u32]) -> Setup {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let root = sysfs((0..GROUPS).map(|group| (device(group), group)));
    let mut description = Description::new(KERNELS[0]);
    for group in 0..GROUPS {
        let address = device(group).parse().unwrap();
        description = description.device(address, group, Driver::Vfio, PciFunction::nvme());
    }
    let description = alone.iter().fold(description, |all, group| all.alone(*group));
    set_world(World::new(description.build(), root.path().to_owned()));
    Setup {
        container: IommuContext::open().unwrap(),
        devices: BTreeMap::new(),
        _sysfs: root,
        _turn: turn,
    }
}

/// Reads the world, or changes it.
fn with<T>(act: impl FnOnce(&mut World) -> T) -> T {
    act(world().as_mut().unwrap())
}

fn mappings() -> Vec<Vec<Range<u64>>> {
    with(|world| world.mappings())
}

fn memory() -> Arc<GuestRegionMmap<()>> {
    Arc::new(GuestRegionMmap::from_range(GuestAddress(0), SIZE as usize, None).unwrap())
}

fn pieces(pieces: &[u64]) -> Vec<Range<u64>> {
    pieces.iter().map(|piece| piece * SIZE..(piece + 1) * SIZE).collect()
}

impl Setup {
    fn attach(&mut self, group: u32) -> Result<(), String> {
        let device = self.container.open_device(device(group).parse().unwrap());
        self.devices.insert(group, device.map_err(text)?);
        Ok(())
    }

    fn detach(&mut self, group: u32) {
        drop(self.devices.remove(&group));
    }

    fn map(&self, piece: u64) -> Mapping {
        self.container.dma().map(Iova(piece * SIZE), memory()).unwrap()
    }
}

#[test]
fn sixteen_groups_share_one_mapping() {
    let mut setup = setup(&[]);
    setup.attach(0).unwrap();
    let _mappings = [setup.map(0), setup.map(4)];
    (1..GROUPS).for_each(|group| setup.attach(group).unwrap());
    let made = with(|world| [MAP, SET_CONTAINER, SET_IOMMU].map(|request| world.made(request)));
    assert_eq!(made, [2, 16, 1]);
    assert_eq!(mappings(), [pieces(&[0, 4])], "in one container");
}

/// Opens devices in threads, as a VMM does.
fn open_side_by_side(prepared: Vec<PreparedDevice>) -> Vec<Result<Arc<AssignedDevice>, String>> {
    std::thread::scope(|scope| {
        let open = |device: PreparedDevice| scope.spawn(|| device.open().map_err(text));
        let threads: Vec<_> = prepared.into_iter().map(open).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn prepare_all(setup: &Setup) -> Vec<PreparedDevice> {
    let prepare = |group| {
        let address = device(group).parse().unwrap();
        setup.container.prepare_device(address, DeviceOptions::default()).unwrap()
    };
    (0..GROUPS).map(prepare).collect()
}

#[test]
fn memory_is_mapped_while_devices_are_opened_and_unmapped_when_all_are_closed() {
    let setup = setup(&[]);
    let prepared = prepare_all(&setup);
    let mapping = setup.map(0);
    assert_eq!(mappings(), [pieces(&[0])], "before the first device is open");
    let devices = open_side_by_side(prepared);
    assert!(devices.iter().all(Result::is_ok));
    std::thread::scope(|scope| {
        devices.into_iter().for_each(|device| drop(scope.spawn(|| drop(device))));
    });
    assert_eq!(with(|world| world.open_at_unmap.clone()), [0]);
    assert_eq!(mappings(), [vec![]]);
    drop(mapping);
}

#[test]
fn one_device_of_several_is_not_opened_and_all_others_are_closed() {
    for errno in [EIO, ENODEV, ENOMEM] {
        let mut setup = setup(&[]);
        let prepared = prepare_all(&setup);
        with(|world| world.inject_next(OPEN_DEVICE, errno));
        let devices = open_side_by_side(prepared);
        let failed = devices.iter().filter_map(|device| device.as_ref().err());
        let failed: Vec<_> = failed.collect();
        assert_eq!(failed.len(), 1);
        assert!(failed[0].contains("VFIO_GROUP_GET_DEVICE_FD"), "{failed:?}");
        drop(devices);
        drop(std::mem::replace(&mut setup.container, IommuContext::open().unwrap()));
        let open = with(|world| world.system.open_fds());
        assert_eq!(open.len(), 1, "the new container");
    }
}

#[test]
fn a_device_whose_bridge_is_locked_is_opened_when_its_turn_comes() {
    let setup = setup(&[]);
    let prepared = prepare_all(&setup);
    with(|world| world.inject_next(OPEN_DEVICE, EAGAIN));
    assert!(open_side_by_side(prepared).iter().all(Result::is_ok));
    assert_eq!(with(|world| world.made(OPEN_DEVICE)), 17);
}

#[test]
fn accepts_an_open_container_and_no_other_file() {
    let mut setup = setup(&[]);
    let open = |path: &str| std::fs::File::options().read(true).write(true).open(path).unwrap();
    setup.container = IommuContext::open_by(open("/dev/vfio/vfio")).unwrap();
    setup.attach(3).unwrap();
    let _mapping = setup.map(1);
    assert_eq!(mappings().last(), Some(&pieces(&[1])));
    let error = IommuContext::open_by(open("/dev/null")).unwrap_err().to_string();
    assert!(error.ends_with("pass /dev/vfio/vfio"), "{error}");
}

#[test]
fn a_group_that_cannot_share_has_the_same_mappings_in_its_own_container() {
    let mut setup = setup(&[2]);
    setup.attach(1).unwrap();
    let first = setup.map(0);
    setup.attach(2).unwrap();
    let second = setup.map(1);
    assert_eq!(mappings(), [pieces(&[0, 1]), pieces(&[0, 1])]);
    drop(first);
    assert_eq!(mappings(), [pieces(&[1]), pieces(&[1])]);
    second.unmap().unwrap();
    assert_eq!(mappings(), [vec![], vec![]]);
}

#[test]
fn maps_everything_again_after_the_last_group_left() {
    let mut setup = setup(&[]);
    setup.attach(1).unwrap();
    let stays = setup.map(0);
    let goes = setup.map(1);
    setup.detach(1);
    assert_eq!(mappings(), [vec![]], "the container has no IOMMU");
    assert_eq!(with(|world| world.made(UNMAP)), 2, "unmapped before the kernel removes them");
    drop(goes);
    let comes = setup.map(2);
    setup.attach(3).unwrap();
    assert_eq!(mappings(), [pieces(&[0, 2])]);
    drop((stays, comes));
    assert_eq!(mappings(), [vec![]]);
}

#[test]
fn refuses_overlapping_mappings_without_a_group() {
    let setup = setup(&[]);
    let _first = setup.map(0);
    let error = setup.container.dma().map(Iova(SIZE / 2), memory()).err().unwrap();
    assert!(error.to_string().contains("overlaps a mapping"), "{error}");
    assert_eq!(with(|world| world.made(MAP)), 0);
}

#[test]
fn reports_a_group_whose_memory_cannot_be_mapped() {
    let mut setup = setup(&[]);
    let _mapping = setup.map(0);
    with(|world| world.inject_next(MAP, ENOMEM));
    let error = setup.attach(7).unwrap_err();
    let begin =
        "0000:01:00.7: IOMMU group 7: cannot map 0x0-0xfffff for DMA: Cannot allocate memory";
    assert!(error.starts_with(begin) && error.contains("ulimit -l"), "{error}");
    setup.attach(7).unwrap();
    assert_eq!(mappings(), [pieces(&[0])], "the repetition works");
}

/// An operation on groups and memory.
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
    /// Groups 2 and 3 cannot share. After each step every container with a group has all mappings,
    /// and the others have none.
    #[test]
    fn containers_have_the_same_mappings_after_every_step(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut setup = setup(&[2, 3]);
        let mut mapped = BTreeMap::new();
        for step in steps {
            match step {
                Step::Attach(group) if setup.devices.contains_key(&group) => {}
                // If a call fails, the group is not attached.
                Step::Attach(group) => drop(setup.attach(group)),
                Step::Detach(group) => setup.detach(group),
                Step::Map(piece) if !mapped.contains_key(&piece) => {
                    if let Ok(mapping) = setup.container.dma().map(Iova(piece * SIZE), memory()) {
                        mapped.insert(piece, mapping);
                    }
                }
                Step::Unmap(piece) => drop(mapped.remove(&piece)),
                Step::Fail => with(|world| world.inject_next(MAP, ENOSPC)),
                Step::Map(_) => {}
            }
            let all = pieces(&mapped.keys().copied().collect::<Vec<_>>());
            let used: Vec<_> = mappings().into_iter().filter(|own| !own.is_empty()).collect();
            let attached: BTreeSet<u32> = setup.devices.keys().copied().collect();
            let alone = attached.iter().filter(|group| **group > 1).count();
            let shared = attached.len() - alone;
            prop_assert!(used.iter().all(|own| *own == all), "{:?} {:?}", used, all);
            if !all.is_empty() {
                prop_assert_eq!(used.len(), alone + usize::from(shared > 0), "{:?}", attached);
            }
        }
    }
}

/// A container with a group and two mapped pieces of memory. A second group cannot share it.
struct Pair {
    setup: Setup,
    pieces: Vec<Weak<GuestRegionMmap<()>>>,
    mappings: Vec<Mapping>,
}

impl Pair {
    fn new() -> Self {
        let mut setup = setup(&[2]);
        setup.attach(1).unwrap();
        let mut pair = Self { setup, pieces: Vec::new(), mappings: Vec::new() };
        (0..2).for_each(|_| pair.map().unwrap());
        pair
    }

    fn with_both() -> Self {
        let mut pair = Self::new();
        pair.setup.attach(2).unwrap();
        pair
    }

    /// Maps one more piece, which nothing else holds.
    fn map(&mut self) -> Result<(), String> {
        let piece = memory();
        let iova = Iova(self.pieces.len() as u64 * SIZE);
        self.pieces.push(Arc::downgrade(&piece));
        let mapping = self.setup.container.dma().map(iova, piece);
        self.mappings.push(mapping.map_err(text)?);
        Ok(())
    }

    fn alive(&self) -> usize {
        let pieces = self.pieces.iter();
        pieces.filter(|piece| piece.strong_count() != 0).count()
    }
}

/// The number of mappings in each container.
fn counts() -> [usize; 2] {
    let mappings = mappings();
    [0, 1].map(|container| mappings.get(container).map_or(0, Vec::len))
}

/// The failed requests, and the number of failed unmaps. A line is logged for each of these.
fn failures(point: &str) -> (Vec<u32>, usize) {
    let failed = with(|world| {
        world.clear();
        std::mem::take(&mut world.failed)
    });
    let kept = failed.iter().filter(|request| **request == UNMAP).count();
    let lines = lines::taken();
    let leaks = lines.iter().filter(|line| line.contains("its memory is leaked"));
    assert_eq!(leaks.count(), kept, "{point}: {failed:?}");
    (failed, kept)
}

/// Runs `act` on a pair while these calls fail. Returns its result, the failed requests, and the
/// number of failed unmaps.
fn fail<T>(
    pair: &mut Pair,
    calls: &Range<usize>,
    errno: i32,
    act: impl FnOnce(&mut Pair) -> T,
) -> (T, Vec<u32>, usize) {
    lines::keep();
    with(|world| world.inject(calls.clone(), errno));
    let result = act(pair);
    let (failed, kept) = failures(&format!("calls {calls:?} with {errno}"));
    (result, failed, kept)
}

/// Fails each call of `trial` with each errno, alone and with all later calls. `trial` returns
/// whether a call failed.
fn sweep(name: &str, trial: impl Fn(&Range<usize>, i32) -> bool) -> usize {
    let mut points = 0;
    for errno in ERRNOS {
        for call in 0.. {
            if !trial(&(call..call + 1), errno) {
                break;
            }
            assert!(trial(&(call..usize::MAX), errno));
            points += 2;
        }
    }
    println!("{name}: {points} points");
    points
}

/// Attaches a group that cannot share.
fn attaching(calls: &Range<usize>, errno: i32) -> bool {
    let mut pair = Pair::new();
    let (attached, failed, kept) = fail(&mut pair, calls, errno, |pair| pair.setup.attach(2));
    let point = format!("calls {calls:?} with {errno}: {failed:?}, {attached:?}");
    if let Err(error) = &attached {
        assert!(failed.iter().any(|request| is_named(*request, errno, error)), "{point}");
    }
    // A group that the first container refuses gets its own container.
    let may_work = failed.iter().all(|request| *request == SET_CONTAINER);
    assert!(attached.is_err() || may_work, "{point}");
    // When the group's file is closed, the kernel removes the group's mappings.
    let second = if attached.is_ok() { 2 } else { 0 };
    assert_eq!(counts(), [2, second], "{point}");
    pair.mappings.clear();
    assert!(pair.alive() <= kept, "{point}");
    !failed.is_empty()
}

/// Maps memory for both groups.
fn mapping(calls: &Range<usize>, errno: i32) -> bool {
    let mut pair = Pair::with_both();
    let (mapped, failed, kept) = fail(&mut pair, calls, errno, Pair::map);
    let point = format!("calls {calls:?} with {errno}: {failed:?}, {mapped:?}");
    assert_eq!(mapped.is_ok(), failed.is_empty(), "{point}");
    if let Err(error) = mapped {
        let named = error.contains("0x200000-") && error.contains(&format!("(os error {errno})"));
        assert!(named, "{point}");
    }
    let whole = pair.mappings.len();
    assert_eq!(counts(), [whole + kept, whole], "{point}");
    assert_eq!(pair.alive(), whole + kept, "freed, or left: {point}");
    !failed.is_empty()
}

/// Unmaps memory from both groups.
fn unmapping(calls: &Range<usize>, errno: i32) -> bool {
    let mut pair = Pair::with_both();
    let ((), failed, kept) = fail(&mut pair, calls, errno, |pair| pair.mappings.clear());
    let point = format!("calls {calls:?} with {errno}: {failed:?}");
    assert_eq!(counts().iter().sum::<usize>(), kept, "{point}");
    check_leaked(&pair, kept, &point);
    !failed.is_empty()
}

/// Detaches the second group. When its file is closed, the kernel removes its mappings, but the
/// library cannot know that.
fn leaving(calls: &Range<usize>, errno: i32) -> bool {
    let mut pair = Pair::with_both();
    let ((), failed, kept) = fail(&mut pair, calls, errno, |pair| pair.setup.detach(2));
    let point = format!("calls {calls:?} with {errno}: {failed:?}");
    assert_eq!(counts(), [2, 0], "{point}");
    pair.mappings.clear();
    check_leaked(&pair, kept, &point);
    !failed.is_empty()
}

/// Memory that could not be unmapped is alive. Two failed unmaps can be of the same memory.
fn check_leaked(pair: &Pair, kept: usize, point: &str) {
    let alive = pair.alive();
    assert!(alive <= kept && (alive == 0) == (kept == 0), "{point}: {alive} are alive");
}

#[test]
fn failures_keep_containers_equal_and_leak_what_cannot_be_unmapped() {
    let points = [
        sweep("a group gets its own container", attaching),
        sweep("memory is mapped in both containers", mapping),
        sweep("memory is unmapped from both containers", unmapping),
        sweep("a group leaves", leaving),
    ];
    println!("groups: {} points", points.into_iter().sum::<usize>());
    assert!(points.iter().all(|points| points / ERRNOS.len() >= 4), "{points:?}");
}
