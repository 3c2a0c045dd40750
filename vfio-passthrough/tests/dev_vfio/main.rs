//! Tests of the whole library on the model of /dev/vfio and /dev/iommu. Two functions of two groups
//! are attached, and a guest uses them. It reboots into another VM. One function is shut down at the
//! guest's end, the other is detached. Each call of the kernel fails in turn, with each errno. The
//! host unbinds all devices.
#![allow(clippy::arithmetic_side_effects, clippy::unwrap_used, reason = "a test that fails panics")]

mod groups;
mod libc;
#[path = "../failures/lines.rs"]
mod lines;
mod on_5_4;
mod plugged;
mod vf_tokens;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _};
use std::sync::{Arc, Mutex, PoisonError};

use self::libc::{
    BIND, INFO, IOAS_MAP_FILE, IOAS_UNMAP, IOMMU_DESTROY, IOVA_RANGES, LEAVING, LINK,
    SET_CONTAINER, SYSFS, UNLINK, UNMAP, World, set_world, world,
};
use ::libc::{
    E2BIG, EACCES, EADDRINUSE, EAGAIN, EBUSY, EEXIST, EFAULT, EINVAL, EIO, EMSGSIZE, ENODEV,
    ENOENT, ENOMEM, ENOSPC, ENOTTY, EOPNOTSUPP, EOVERFLOW, EPERM,
};
use vfio_model::{Description, Driver, Fd, Kernel, PciFunction, System};
use vfio_passthrough::host::{GroupLink, HostMemory};
use vfio_passthrough::model::{Faults, Guest};
use vfio_passthrough::{BarIndex, IommuContext, Iova, PassthroughFunction, ResetPolicy};
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap};

const ERRNOS: [i32; 8] = [ENOMEM, ENOSPC, EBUSY, EINVAL, EFAULT, EIO, ENODEV, EPERM];
/// More errnos of iommufd.
const IOMMUFD_ERRNOS: [i32; 16] = [
    ENOMEM, ENOSPC, EBUSY, EINVAL, EFAULT, EIO, ENODEV, EPERM, EACCES, EADDRINUSE, EEXIST,
    EMSGSIZE, ENOENT, ENOTTY, EOPNOTSUPP, EOVERFLOW,
];
/// The kernels of the tests of groups, and of devices that come and leave by their groups.
const KERNELS: [Kernel; 2] = [Kernel::Linux6_12, Kernel::Linux6_1];
const INTERFACES: &[Interface] = &[Interface::Type1, Interface::Iommufd];
const DEVICES: [(&str, u32); 2] = [("0000:01:00.0", 5), ("0000:02:00.0", 6)];

/// `/sys` of a host whose devices are bound to vfio-pci, each in its group.
fn sysfs(devices: impl IntoIterator<Item = (String, u32)>) -> tempfile::TempDir {
    // The tests make thousands of these trees, so they are in memory.
    let root = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    let root = root.unwrap();
    for (device, group) in devices {
        let folder = root.path().join("bus/pci/devices").join(device);
        std::fs::create_dir_all(&folder).unwrap();
        std::os::unix::fs::symlink("../drivers/vfio-pci", folder.join("driver")).unwrap();
        std::os::unix::fs::symlink(format!("../groups/{group}"), folder.join("iommu_group"))
            .unwrap();
        let node = folder.join(format!("vfio-dev/vfio{group}"));
        std::fs::create_dir_all(&node).unwrap();
        std::fs::write(node.join("dev"), "1:3\n").unwrap();
    }
    root
}

/// A KVM of the model.
struct Link(Fd);

impl GroupLink for Link {
    fn add(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        let mut world = world();
        let world = world.as_mut().unwrap();
        world.pass(LINK)?;
        world.system.link(self.0, world.fd(file.as_raw_fd()))
    }

    fn remove(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        let mut world = world();
        let world = world.as_mut().unwrap();
        world.pass(UNLINK)?;
        world.system.unlink(self.0, world.fd(file.as_raw_fd()))
    }
}

/// The interface of the kernel that the library uses.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Interface {
    Type1,
    Iommufd,
}

impl Interface {
    fn open(self) -> Result<IommuContext, String> {
        match self {
            Self::Type1 => IommuContext::open().map_err(text),
            Self::Iommufd => IommuContext::open_iommufd().map_err(text),
        }
    }

    fn errnos(self) -> &'static [i32] {
        match self {
            Self::Type1 => &ERRNOS,
            Self::Iommufd => &IOMMUFD_ERRNOS,
        }
    }
}

fn text(error: impl ToString) -> String {
    error.to_string()
}

/// There is one C library, so only one world can exist at a time.
static TURN: Mutex<()> = Mutex::new(());

/// An action of the host before a guest ends.
type Host = fn(&System);

const NOTHING: Host = |_| {};

/// Memory of a memfd.
fn memory() -> Arc<GuestRegionMmap<()>> {
    // SAFETY: the name ends with a zero byte.
    let file = unsafe { ::libc::memfd_create(c"memory".as_ptr(), ::libc::MFD_CLOEXEC) };
    // SAFETY: the file was made just now, and nothing else owns it.
    let file = unsafe { File::from_raw_fd(file) };
    file.set_len(0x4000).unwrap();
    let file = Some(FileOffset::new(file, 0));
    Arc::new(GuestRegionMmap::from_range(GuestAddress(0), 0x4000, file).unwrap())
}

/// A guest's life. Returns the first failure, if there is one.
fn live(interface: Interface, kvms: [Fd; 2], host: Host) -> Result<(), String> {
    let container = interface.open()?;
    let [first, second] = kvms;
    container.link(Arc::new(Link(first))).map_err(text)?;
    let mut devices = Vec::new();
    for (device, _) in DEVICES {
        let address = device.parse().unwrap();
        devices.push((address, container.open_device(address).map_err(text)?));
    }
    let pieces = (0..3).map(|at: u64| (Iova(at << 20), memory() as Arc<dyn HostMemory>));
    let mappings = container.dma().map_all(pieces).map_err(text)?;
    container.dma().iova_ranges().map_err(text)?;
    let guest = Guest::new(Arc::new(Faults::default()));
    let functions = devices.into_iter().map(|(address, device)| {
        PassthroughFunction::new(address, device, &guest.services(), ResetPolicy::Required)
            .map_err(text)
    });
    let functions = functions.collect::<Result<Vec<_>, _>>()?;
    for (function, bar) in functions.iter().zip([0xe000_0004_u32, 0xe100_0004]) {
        let _ = function.config_write(0x10, &bar.to_le_bytes());
        let _ = function.config_write(0x04, &[6, 0]);
        function.bar_write(BarIndex::new(0).unwrap(), 0x2000 + 12, &[0; 4]);
        let _ = function.config_write(0x42, &[0, 0x80]);
        let _ = function.config_write(0x10, &(bar + 0x10_0000).to_le_bytes());
        function.reset().1.map_err(text)?;
    }
    container.link(Arc::new(Link(second))).map_err(text)?;
    host(&world().as_ref().unwrap().system);
    let ends = functions
        .iter()
        .zip([PassthroughFunction::shutdown, |function: &PassthroughFunction| function.detach().1]);
    let ends: Vec<_> = ends.map(|(function, end)| end(function).map_err(text)).collect();
    // The devices are closed when the hypervisor has no file of them.
    drop(container.unlink());
    drop(functions);
    mappings.into_iter().try_for_each(|mapping| mapping.unmap().map(drop)).map_err(text)?;
    ends.into_iter().collect()
}

/// The outcome of a life.
struct Outcome {
    result: Result<(), String>,
    calls: usize,
    failed: Vec<u32>,
    /// The lines of warnings and errors.
    lines: Vec<String>,
    bus_resets: u64,
    /// The open files, the containers and iommufds, and the locked bytes at the end.
    left: (Vec<Fd>, usize, u64),
    /// The number of memfds that are open at the end.
    leaked: usize,
    /// The errno of each unmapping that failed.
    not_unmapped: Vec<Option<i32>>,
    drivers: [Option<Driver>; 2],
}

/// How the devices are reset.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Resets {
    EachByItself,
    WithTheBus,
}

/// What lives, and on what.
#[derive(Clone, Copy, Debug)]
struct Life {
    kernel: Kernel,
    interface: Interface,
    resets: Resets,
}

fn run(life: Life, inject: Option<(Range<usize>, i32)>, host: Host) -> Outcome {
    let Life { kernel, interface, resets } = life;
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let root = sysfs(DEVICES.map(|(device, group)| (device.to_owned(), group)));
    let mut description = Description::new(kernel);
    for (device, group) in DEVICES {
        let function =
            PciFunction { resets: resets == Resets::EachByItself, ..PciFunction::nvme() };
        description = description.device(device.parse().unwrap(), group, Driver::Vfio, function);
    }
    // Both devices are on one bus.
    description = description.bus(DEVICES.map(|(device, _)| device.parse().unwrap()));
    let system = description.build();
    let kvms = [system.open_kvm(), system.open_kvm()];
    let mut own = World::new(system, root.path().to_owned());
    own.nodes = DEVICES.map(|(device, node)| (node, device.parse().unwrap())).into();
    own.counts_sysfs = true;
    if let Some((calls, errno)) = inject {
        own.inject(calls, errno);
    }
    set_world(own);
    lines::keep();
    let result = live(interface, kvms, host);
    let own = world().take().unwrap();
    kvms.iter().for_each(|kvm| own.system.close(*kvm).unwrap());
    let (memories, files): (Vec<_>, Vec<_>) =
        own.system.open_fds().into_iter().partition(|fd| own.memories.contains(fd));
    let contexts = own.system.containers() + own.system.iommufds();
    Outcome {
        result,
        calls: own.calls.len(),
        failed: own.failed,
        lines: lines::taken(),
        left: (files, contexts, own.system.locked_memory()),
        leaked: memories.len(),
        not_unmapped: own.not_unmapped,
        bus_resets: own.bus_resets,
        drivers: DEVICES.map(|(device, _)| own.system.driver(device.parse().unwrap())),
    }
}

/// The host unbinds all devices.
const TAKE_ALL: Host = |system| {
    for (device, _) in DEVICES {
        assert!(!system.unbind(device.parse().unwrap()).unwrap());
    }
};

/// If the host unbinds all devices of a group, the kernel detaches the group when its last device
/// is closed (vfio_device_remove_group), and removes all mappings with the last group. The library
/// does not unmap them then. With iommufd the mappings stay until the IOAS ends.
#[test]
fn unmaps_everything_if_the_host_unbinds_all_devices() {
    let resets = Resets::EachByItself;
    for (kernel, interface) in [
        (Kernel::Linux5_4, Interface::Type1),
        (Kernel::Linux6_1, Interface::Type1),
        (Kernel::Linux6_12, Interface::Type1),
        (Kernel::Linux6_12, Interface::Iommufd),
        (Kernel::Linux7_3, Interface::Iommufd),
    ] {
        let life = life(kernel, interface, resets);
        let outcome = run(life, None, TAKE_ALL);
        assert_eq!((outcome.result, outcome.left), (Ok(()), (vec![], 0, 0)), "{life:?}");
        assert_eq!(outcome.not_unmapped, [], "{life:?}");
        assert_eq!(outcome.drivers, [Some(Driver::None); 2], "{life:?}");
    }
}

/// The program returns an error for this failed call. It retries or logs others.
fn is_reported(life: Life, failed: u32, errno: i32) -> bool {
    match (failed, errno) {
        // A group that leaves is asked whether the kernel has detached it by itself.
        (LEAVING, _) => false,
        // A guest's failed access is logged. A group that a container refuses gets its own
        // container. A device without recorded IDs is not compared with them.
        (SET_CONTAINER | 8 | 10 | UNMAP | IOAS_UNMAP | IOMMU_DESTROY | UNLINK | SYSFS, _) => false,
        // This errno means that there is no such interrupt.
        (9, EINVAL) => false,
        // These errnos mean that there are more ranges, or more functions on the bus. The program
        // retries.
        (IOVA_RANGES, EMSGSIZE) => false,
        // The file, or the kernel, is not one for this call. The program maps by address.
        (IOAS_MAP_FILE, EINVAL | ENOTTY) => false,
        (INFO, ENOSPC) => life.resets == Resets::EachByItself && life.interface == Interface::Type1,
        _ => true,
    }
}

/// An error names the errno of the failed call.
fn is_named(failed: u32, errno: i32, error: &str) -> bool {
    // vfio-ioctls reads the version and the extension, and drops the errno: the kernel returns none
    // for them.
    failed < 2 && error.starts_with("/dev/vfio/vfio: ")
        || error.contains(&format!("(os error {errno})"))
        || errno == EBUSY && error.contains("(EBUSY)")
        // The program does not retry for ever.
        || matches!((failed, errno), (INFO, ENOSPC) | (IOVA_RANGES, EMSGSIZE))
            && error.contains(&format!("(os error {E2BIG})"))
        || errno == ENODEV && error.contains("(ENODEV)")
        // The errno has a text of its own.
        || failed == BIND && matches!(errno, EBUSY | EINVAL) && error.contains("is in use")
        || failed == BIND && errno == EACCES && error.contains("(EACCES)")
        // A file of sysfs that cannot be read counts as missing.
        || failed == SYSFS && DEVICES.iter().any(|(device, _)| error.starts_with(device))
}

/// Whether the program neither returns nor logs this failed call.
fn is_silent(life: Life, failed: u32, errno: i32) -> bool {
    match (failed, errno) {
        // The program retries, or asks something else.
        (SET_CONTAINER | SYSFS, _) | (9, EINVAL) | (IOVA_RANGES, EMSGSIZE) => true,
        // Without an answer the group counts as attached.
        (LEAVING, _) => true,
        (IOAS_MAP_FILE, EINVAL | ENOTTY) => true,
        (INFO, ENOSPC) => !is_reported(life, failed, errno),
        _ => false,
    }
}

/// Runs a life in which these calls fail.
fn failing(life: Life, host: Host, calls: Range<usize>, errno: i32) -> Result<(), String> {
    let Outcome { result, failed, left, leaked, lines, .. } =
        run(life, Some((calls.clone(), errno)), host);
    let first = *failed.first().unwrap();
    // Memory that the kernel did not unmap is leaked.
    let kept = failed.iter().filter(|failed| **failed == IOAS_UNMAP).count();
    let is_left = left != (vec![], 0, 0) || leaked > kept;
    let names = |error: &String| failed.iter().any(|failed| is_named(*failed, errno, error));
    let is_unnamed = result.as_ref().is_err_and(|error| !names(error));
    let is_unreported = result.is_ok() && is_reported(life, first, errno);
    let logged = lines.iter().chain(result.as_ref().err()).any(names);
    let is_unheard = !logged && !is_silent(life, first, errno);
    if is_left || is_unnamed || is_unreported || is_unheard {
        let point = format!("{life:?}: calls {calls:?} ({failed:?}) with errno {errno}");
        return Err(format!("{point}: {result:?}, {lines:?}, left: {left:?}, {leaked}"));
    }
    Ok(())
}

/// Fails each call of a life alone with each errno, and with all later calls.
fn every_call_fails(life: Life, host: Host) -> usize {
    let good = run(life, None, host);
    assert_eq!((good.result, good.left), (Ok(()), (vec![], 0, 0)), "{life:?}");
    assert_eq!(good.leaked, 0, "{life:?}");
    assert_eq!(good.lines, [""; 0], "{life:?}");
    let expected = if life.resets == Resets::WithTheBus { 5 } else { 0 };
    assert_eq!(good.bus_resets, expected, "{life:?}");
    let errnos = life.interface.errnos();
    let alone = (0..good.calls).flat_map(|call| errnos.iter().map(move |e| (call..call + 1, *e)));
    let lasting = (0..good.calls).map(|call| (call..usize::MAX, EIO));
    let points = alone.chain(lasting);
    let outcomes: Vec<_> = points.map(|(calls, errno)| failing(life, host, calls, errno)).collect();
    let wrong: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
    let shown: Vec<_> = wrong.iter().take(10).collect();
    assert!(wrong.is_empty(), "{} of {}: {:#?}", wrong.len(), outcomes.len(), shown);
    println!("{life:?}: {} calls, {} points", good.calls, outcomes.len());
    outcomes.len()
}

const fn life(kernel: Kernel, interface: Interface, resets: Resets) -> Life {
    Life { kernel, interface, resets }
}

#[test]
fn a_failed_kernel_call_is_named_and_leaves_nothing() {
    let by_itself = life(Kernel::Linux6_12, Interface::Type1, Resets::EachByItself);
    let points = [
        every_call_fails(Life { kernel: Kernel::Linux5_4, ..by_itself }, NOTHING),
        every_call_fails(Life { kernel: Kernel::Linux5_4, ..by_itself }, TAKE_ALL),
        every_call_fails(Life { kernel: Kernel::Linux6_1, ..by_itself }, NOTHING),
        every_call_fails(by_itself, NOTHING),
        every_call_fails(by_itself, TAKE_ALL),
        every_call_fails(Life { kernel: Kernel::Linux7_3, ..by_itself }, NOTHING),
        // A bus reset is the same in both versions.
        every_call_fails(Life { resets: Resets::WithTheBus, ..by_itself }, NOTHING),
    ];
    let points: usize = points.into_iter().sum();
    println!("/dev/vfio: {points} points");
    assert!(points > 3000, "{points}");
}

#[test]
fn a_failed_call_of_iommufd_is_named_and_leaves_nothing() {
    let by_itself = life(Kernel::Linux6_12, Interface::Iommufd, Resets::EachByItself);
    let points = [
        every_call_fails(by_itself, NOTHING),
        every_call_fails(Life { kernel: Kernel::Linux7_3, ..by_itself }, TAKE_ALL),
        every_call_fails(Life { resets: Resets::WithTheBus, ..by_itself }, NOTHING),
    ];
    let points: usize = points.into_iter().sum();
    println!("/dev/iommu: {points} points");
    assert!(points > 4500, "{points}");
}
