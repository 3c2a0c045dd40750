//! Tests of the whole library on the model of /dev/vfio. Two functions of two groups are attached,
//! and a guest uses them. One is shut down at the guest's end, the other is detached. Each call of
//! the kernel fails in turn, with each errno. In another test the host unbinds all devices.
#![allow(clippy::arithmetic_side_effects, clippy::unwrap_used, reason = "a test that fails panics")]

mod groups;
mod libc;
#[path = "../failures/lines.rs"]
mod lines;
mod vf_tokens;

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use self::libc::{INFO, OPEN_DEVICE, SET_CONTAINER, STATUS, UNMAP, World, set_world, world};
use ::libc::{E2BIG, EAGAIN, EBUSY, EFAULT, EINVAL, EIO, ENODEV, ENOMEM, ENOSPC, EPERM};
use vfio_model::{Description, Driver, Fd, Kernel, PciFunction, System};
use vfio_passthrough::host::{GroupLink, HostMemory};
use vfio_passthrough::model::{Faults, Guest};
use vfio_passthrough::{BarIndex, IommuContext, Iova, PassthroughFunction, ResetPolicy};
use vm_memory::{GuestAddress, GuestRegionMmap};

const ERRNOS: [i32; 8] = [ENOMEM, ENOSPC, EBUSY, EINVAL, EFAULT, EIO, ENODEV, EPERM];
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
    }
    root
}

/// A KVM of the model.
struct Link(Fd);

impl GroupLink for Link {
    fn add(&self, group: BorrowedFd<'_>) -> io::Result<()> {
        let world = world();
        let world = world.as_ref().unwrap();
        world.system.link(self.0, world.fd(group.as_raw_fd()))
    }

    fn remove(&self, group: BorrowedFd<'_>) -> io::Result<()> {
        let world = world();
        let world = world.as_ref().unwrap();
        world.system.unlink(self.0, world.fd(group.as_raw_fd()))
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

/// A guest's life. Returns the first failure, if there is one.
fn live(kvm: Fd, host: Host) -> Result<(), String> {
    let container = IommuContext::open().map_err(text)?;
    container.link(Arc::new(Link(kvm))).map_err(text)?;
    let mut devices = Vec::new();
    for (device, _) in DEVICES {
        let address = device.parse().unwrap();
        devices.push((address, container.open_device(address).map_err(text)?));
    }
    let memory =
        |_| Arc::new(GuestRegionMmap::<()>::from_range(GuestAddress(0), 0x4000, None).unwrap());
    let pieces = (0..3).map(|at: u64| (Iova(at << 20), memory(at) as Arc<dyn HostMemory>));
    let mappings = container.dma().map_all(pieces).map_err(text)?;
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
    host(&world().as_ref().unwrap().system);
    let ends = functions
        .iter()
        .zip([PassthroughFunction::shutdown, |function: &PassthroughFunction| function.detach().1]);
    let ends: Vec<_> = ends.map(|(function, end)| end(function).map_err(text)).collect();
    drop(functions);
    mappings.into_iter().try_for_each(|mapping| mapping.unmap().map(drop)).map_err(text)?;
    ends.into_iter().collect()
}

/// The outcome of a life.
struct Outcome {
    result: Result<(), String>,
    /// The request of each call.
    calls: Vec<u32>,
    failed: Option<u32>,
    bus_resets: u64,
    /// The open files, the containers, and the locked bytes at the end.
    left: (Vec<Fd>, usize, u64),
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

fn run(kernel: Kernel, resets: Resets, inject: Option<(usize, i32)>, host: Host) -> Outcome {
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
    let kvm = system.open_kvm();
    let mut own = World::new(system, root.path().to_owned());
    if let Some((call, errno)) = inject {
        own.inject(call..call + 1, errno);
    }
    set_world(own);
    let result = live(kvm, host);
    let own = world().take().unwrap();
    own.system.close(kvm).unwrap();
    Outcome {
        result,
        calls: own.calls,
        failed: own.failed.first().copied(),
        left: (own.system.open_fds(), own.system.containers(), own.system.locked_memory()),
        not_unmapped: own.not_unmapped,
        bus_resets: own.bus_resets,
        drivers: DEVICES.map(|(device, _)| own.system.driver(device.parse().unwrap())),
    }
}

/// If the host unbinds all devices of a group, the kernel detaches the group when its last device
/// is closed (vfio_device_remove_group), and removes all mappings with the last group. The library
/// does not unmap them then.
#[test]
fn unmaps_everything_if_the_host_unbinds_all_devices() {
    let take_all: Host = |system| {
        for (device, _) in DEVICES {
            assert!(!system.unbind(device.parse().unwrap()).unwrap());
        }
    };
    for kernel in [Kernel::Linux5_4, Kernel::Linux6_1, Kernel::Linux6_12] {
        let outcome = run(kernel, Resets::EachByItself, None, take_all);
        assert_eq!((outcome.result, outcome.left), (Ok(()), (vec![], 0, 0)), "{kernel:?}");
        assert_eq!(outcome.not_unmapped, [], "{kernel:?}");
        assert_eq!(outcome.drivers, [Some(Driver::None); 2], "{kernel:?}");
    }
}

/// The program returns an error for this failed call. It retries or logs others.
fn is_reported(resets: Resets, failed: u32, errno: i32, opens: bool) -> bool {
    match (failed, errno) {
        // A group that leaves is asked whether the kernel has detached it by itself. Without an
        // answer it counts as attached.
        (STATUS, _) => opens,
        // A guest's failed access is logged. A group that a container refuses gets its own
        // container.
        (SET_CONTAINER | 8 | 10 | UNMAP, _) => false,
        // This errno means that there is no such interrupt.
        (9, EINVAL) => false,
        // On a device, this errno means that the bus has more functions, and the program retries.
        (INFO, ENOSPC) => resets == Resets::EachByItself,
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
        || (failed, errno) == (INFO, ENOSPC) && error.contains(&format!("(os error {E2BIG})"))
        || errno == ENODEV && error.contains("(ENODEV)")
}

fn every_call_fails(kernel: Kernel, resets: Resets) -> usize {
    let good = run(kernel, resets, None, NOTHING);
    assert_eq!((good.result, good.left), (Ok(()), (vec![], 0, 0)), "{kernel:?}, {resets:?}");
    let expected = if resets == Resets::WithTheBus { 5 } else { 0 };
    assert_eq!(good.bus_resets, expected, "{kernel:?}, {resets:?}");
    let opened = good.calls.iter().rposition(|request| *request == OPEN_DEVICE).unwrap();
    let calls = good.calls.len();
    for (call, errno) in (0..calls).flat_map(|call| ERRNOS.map(|errno| (call, errno))) {
        let outcome = run(kernel, resets, Some((call, errno)), NOTHING);
        let failed = outcome.failed.unwrap();
        let point =
            format!("{kernel:?}, {resets:?}: call {call} (request {failed}) with errno {errno}");
        assert_eq!(outcome.left, (vec![], 0, 0), "{point}: {:?}", outcome.result);
        if let Err(error) = &outcome.result {
            assert!(is_named(failed, errno, error), "{point}: {error}");
        }
        assert!(
            outcome.result.is_err() || !is_reported(resets, failed, errno, call < opened),
            "{point} is not reported"
        );
    }
    calls * ERRNOS.len()
}

#[test]
fn a_failed_kernel_call_is_named_and_leaves_nothing() {
    let mut points = 0;
    // A bus reset is the same in both versions.
    for (kernel, resets) in [
        (Kernel::Linux6_1, Resets::EachByItself),
        (Kernel::Linux6_12, Resets::EachByItself),
        (Kernel::Linux6_12, Resets::WithTheBus),
    ] {
        points += every_call_fails(kernel, resets);
    }
    println!("/dev/vfio: {points} points");
    assert!(points > 1500, "{points}");
}
