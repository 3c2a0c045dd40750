//! Devices that come and go while a guest runs: a client opens them, and the process of the guest may
//! open no file. Each call of the kernel fails in turn, and the guest is as before.

use std::path::PathBuf;

use vfio_passthrough::PciAddress;
use vfio_passthrough::backend::sysfs::{Entry, Sysfs};
use vfio_passthrough::context::{DeviceOptions, Nodes};
use vfio_passthrough::dma::Mapping;

use super::libc::{IOAS_ALLOC, RESET};
use super::*;

/// What a client passes.
struct Passed {
    context: File,
    devices: Vec<(PciAddress, File, Sysfs)>,
}

/// Opens the devices, as a client of a VMM does.
fn pass(interface: Interface) -> Passed {
    pass_behind(interface, ["0000:00:1c.0", "0000:00:1d.0"])
}

/// The same, behind these bridges.
fn pass_behind(interface: Interface, bridges: [&str; 2]) -> Passed {
    let nodes = Nodes::new(interface == Interface::Iommufd);
    let devices = DEVICES.into_iter().zip(bridges).map(|((device, group), bridge)| {
        let address = device.parse().unwrap();
        let file = nodes.open(address).unwrap();
        let mut copy = nodes.sysfs().copy(address, Some(&file));
        // All nodes of the model have the number of /dev/null, also those of groups.
        let target = PathBuf::from(format!("../../devices/virtual/vfio/{group}"));
        copy.insert("dev/char/1:3".into(), Entry::Link(target));
        let folder = PathBuf::from(format!("../../../devices/pci0000:00/{bridge}/{device}"));
        copy.insert(format!("bus/pci/devices/{device}").into(), Entry::Link(folder));
        (address, file, Sysfs::of_copy(copy))
    });
    let devices = devices.collect();
    Passed { context: nodes.open_context().unwrap(), devices }
}

/// The devices of a guest that runs.
struct Plugged {
    functions: Vec<PassthroughFunction>,
    _mappings: Vec<Mapping>,
    _context: IommuContext,
}

fn add(interface: Interface, passed: Passed, kvm: Fd) -> Result<Plugged, String> {
    let context = match interface {
        Interface::Type1 => IommuContext::open_by(passed.context).map_err(text)?,
        Interface::Iommufd => IommuContext::open_iommufd_by(passed.context).map_err(text)?,
    };
    context.link(Arc::new(Link(kvm))).map_err(text)?;
    let prepare = |(address, file, sysfs)| {
        let (file, sysfs) = (Some(file), Some(sysfs));
        let options = DeviceOptions { file, sysfs, ..DeviceOptions::default() };
        Ok((address, context.prepare_device(address, options).map_err(text)?))
    };
    let prepared = passed.devices.into_iter().map(prepare).collect::<Result<Vec<_>, String>>()?;
    let guest = Guest::new(Arc::new(Faults::default()));
    let function = |(address, device): (PciAddress, vfio_passthrough::context::PreparedDevice)| {
        let (device, services) = (device.open().map_err(text)?, guest.services());
        PassthroughFunction::new(address, device, &services, ResetPolicy::Required).map_err(text)
    };
    let functions = prepared.into_iter().map(function).collect::<Result<Vec<_>, _>>()?;
    let pieces = [(Iova(0), memory() as Arc<dyn HostMemory>)];
    let mappings = context.dma().map_all(pieces).map_err(text)?;
    let peers = || Some(context.dma().clone());
    functions.iter().try_for_each(|function| function.set_peers(peers()).map_err(text))?;
    Ok(Plugged { functions, _mappings: mappings, _context: context })
}

impl Plugged {
    fn remove(self) {
        self.functions.iter().for_each(|function| function.detach().1.unwrap());
    }
}

/// A host whose guest has no device, and its KVM.
fn start(interface: Interface) -> (tempfile::TempDir, Fd) {
    let root = sysfs(DEVICES.map(|(device, group)| (device.to_owned(), group)));
    let kernel = match interface {
        Interface::Type1 => KERNELS[1],
        Interface::Iommufd => Kernel::Linux6_12,
    };
    let add = |description: Description, (device, group): (&str, u32)| {
        description.device(device.parse().unwrap(), group, Driver::Vfio, PciFunction::nvme())
    };
    let system = DEVICES.into_iter().fold(Description::new(kernel), add).build();
    let kvm = system.open_kvm();
    let mut world = World::new(system, root.path().to_owned());
    world.nodes = DEVICES.map(|(device, node)| (node, device.parse().unwrap())).into();
    world.counts_sysfs = true;
    set_world(world);
    (root, kvm)
}

fn with<T>(act: impl FnOnce(&mut World) -> T) -> T {
    act(world().as_mut().unwrap())
}

/// The open files besides KVM's, the containers and iommufds, and the locked bytes; and the memfds.
fn left(kvm: Fd) -> ((Vec<Fd>, usize, u64), usize) {
    with(|world| {
        let open = world.system.open_fds().into_iter().filter(|fd| *fd != kvm);
        let (memories, files): (Vec<_>, Vec<_>) = open.partition(|fd| world.memories.contains(fd));
        let contexts = world.system.containers() + world.system.iommufds();
        ((files, contexts, world.system.locked_memory()), memories.len())
    })
}

/// Adds both devices, with failures, and removes them. Returns the error, and the calls of `add`,
/// which opens no node.
fn come_and_leave(
    interface: Interface,
    kvm: Fd,
    inject: Option<(Range<usize>, i32)>,
) -> (Option<String>, Vec<u32>) {
    let passed = pass(interface);
    let before = with(|world| {
        inject.into_iter().for_each(|(calls, errno)| world.inject(calls, errno));
        (world.calls.len(), world.opened)
    });
    let added = add(interface, passed, kvm);
    let calls = with(|world| {
        world.clear();
        assert_eq!(world.opened, before.1);
        world.calls.split_off(before.0)
    });
    let error = match added {
        Ok(plugged) => {
            plugged.remove();
            None
        }
        Err(error) => Some(error),
    };
    (error, calls)
}

/// The file is not that of a context, if the kernel says so: vfio-ioctls drops the errno of the first
/// two requests, and the kernel returns none for them.
fn is_shown(failed: u32, errno: i32, error: &str) -> bool {
    is_named(failed, errno, error)
        || failed < 2 && error.contains("is no VFIO container")
        || failed == IOAS_ALLOC && error.contains("is not that of iommufd")
}

#[test]
fn devices_that_a_client_opened_are_added_without_opening_a_file() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    for &interface in INTERFACES {
        let (_root, kvm) = start(interface);
        for _ in 0..3 {
            let (error, calls) = come_and_leave(interface, kvm, None);
            assert_eq!(error, None, "{interface:?}");
            assert!(!calls.contains(&SYSFS), "{interface:?}: {calls:?}");
            assert_eq!(left(kvm), ((vec![], 0, 0), 0), "{interface:?}");
        }
    }
}

#[test]
fn an_addition_of_which_a_call_fails_leaves_nothing_and_can_be_repeated() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    lines::keep();
    let mut points = 0;
    for &interface in INTERFACES {
        let (_root, kvm) = start(interface);
        let (_, calls) = come_and_leave(interface, kvm, None);
        let errnos = interface.errnos();
        let alone =
            (0..calls.len()).flat_map(|call| errnos.iter().map(move |e| (call..call + 1, *e)));
        let lasting = (0..calls.len()).map(|call| (call..usize::MAX, EIO));
        for (calls, errno) in alone.chain(lasting) {
            let point = format!("{interface:?}: calls {calls:?} with errno {errno}");
            // A memory that the kernel did not unmap is leaked: begin with none.
            let (_root, kvm) = start(interface);
            let (error, _) = come_and_leave(interface, kvm, Some((calls, errno)));
            let failed = with(|world| std::mem::take(&mut world.failed));
            let kept = failed.iter().filter(|failed| **failed == IOAS_UNMAP).count();
            let names = |error: &String| failed.iter().any(|call| is_shown(*call, errno, error));
            assert!(error.as_ref().is_none_or(names), "{point} ({failed:?}): {error:?}");
            // KVM keeps a group whose unlinking fails until the VM ends.
            let is_kept = failed.contains(&UNLINK);
            if is_kept {
                with(|world| world.system.close(kvm).unwrap());
            }
            let (nothing, memories) = left(kvm);
            assert_eq!(nothing, (vec![], 0, 0), "{point} ({failed:?}): {error:?}");
            assert!(memories <= kept, "{point} ({failed:?}): {error:?}");
            if !is_kept {
                assert_eq!(come_and_leave(interface, kvm, None).0, None, "{point}: again");
                assert_eq!(left(kvm), (nothing, memories), "{point}: again");
            }
            points += 1;
        }
    }
    println!("{points} points");
    assert!(points > [0, 400, 1000][INTERFACES.len()], "{points}");
}

/// The kernel resets a device at its close if no other device behind the same bridge is open: of two
/// behind one bridge, the first is reset before its close.
#[test]
fn a_device_that_leaves_is_reset_once() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    for &interface in INTERFACES {
        for (second, resets) in [("0000:00:1d.0", 0), ("0000:00:1c.0", 1)] {
            let (_root, kvm) = start(interface);
            let passed = pass_behind(interface, ["0000:00:1c.0", second]);
            let plugged = add(interface, passed, kvm).unwrap();
            let before = with(|world| world.made(RESET));
            plugged.remove();
            let made = with(|world| world.made(RESET)) - before;
            assert_eq!(made, resets, "{interface:?}, {second}");
        }
    }
}

#[test]
fn a_file_that_is_missing_is_an_error_and_not_opened() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    for (interface, node) in
        [(Interface::Type1, "/dev/vfio/5"), (Interface::Iommufd, "/dev/vfio/devices/vfio5")]
    {
        let (_root, _) = start(interface);
        let Passed { context, mut devices } = pass(interface);
        let context = match interface {
            Interface::Type1 => IommuContext::open_by(context).unwrap(),
            Interface::Iommufd => IommuContext::open_iommufd_by(context).unwrap(),
        };
        let (address, _, sysfs) = devices.remove(0);
        let before = with(|world| world.calls.len());
        let options = DeviceOptions { sysfs: Some(sysfs), ..DeviceOptions::default() };
        let error = context.open_device_with(address, options).unwrap_err().to_string();
        let expected = format!(
            "0000:01:00.0: the open file of {node} is needed, because this \
                                process may open no file"
        );
        assert_eq!(error, expected);
        assert_eq!(with(|world| world.calls.len()), before, "no call is made");
    }
}

/// Groups that cannot share a container need another one, which this process may not open.
#[test]
fn a_group_that_can_share_no_container_is_refused() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let root = sysfs(DEVICES.map(|(device, group)| (device.to_owned(), group)));
    let add_device = |description: Description, (device, group): (&str, u32)| {
        description.device(device.parse().unwrap(), group, Driver::Vfio, PciFunction::nvme())
    };
    let description = DEVICES.into_iter().fold(Description::new(KERNELS[0]), add_device);
    let system = description.alone(DEVICES[1].1).build();
    let kvm = system.open_kvm();
    set_world(World::new(system, root.path().to_owned()));
    let passed = pass(Interface::Type1);
    let before = with(|world| world.opened);
    let error = add(Interface::Type1, passed, kvm).err().unwrap();
    assert!(error.starts_with("0000:02:00.0: "), "{error}");
    assert!(error.contains("VFIO_GROUP_SET_CONTAINER"), "{error}");
    assert_eq!(with(|world| world.opened), before, "no file is opened");
    assert_eq!(left(kvm), ((vec![], 0, 0), 0));
}
