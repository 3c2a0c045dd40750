//! VF tokens: a physical function and its virtual function, both on vfio-pci.

use std::os::unix::fs::symlink;
use std::sync::MutexGuard;

use vfio_passthrough::context::{AssignedDevice, DeviceOptions};

use super::libc::set_world;
use super::*;

const PHYSICAL: &str = "0000:04:00.0";
const VIRTUAL: &str = "0000:04:00.1";
const PLAIN: &str = "0000:05:00.0";
const TOKEN: &str = "bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3";
const OTHER: &str = "bd8d9d2b-5a5f-4f5a-a211-f591514ba1f4";

struct Setup {
    container: IommuContext,
    _sysfs: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

fn setup(kernel: Kernel, made_by_vfio: bool) -> Setup {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let devices = [(PHYSICAL, 1), (VIRTUAL, 2), (PLAIN, 3)];
    let root = sysfs(devices.map(|(device, group)| (device.to_owned(), group)));
    let link = root.path().join("bus/pci/devices").join(VIRTUAL).join("physfn");
    symlink(format!("../{PHYSICAL}"), link).unwrap();
    let add = |description: Description, (device, group): (&str, u32)| {
        description.device(device.parse().unwrap(), group, Driver::Vfio, PciFunction::nvme())
    };
    let mut description = devices.into_iter().fold(Description::new(kernel), add);
    if made_by_vfio {
        let own = [VIRTUAL.parse().unwrap()];
        description = description.virtual_functions(PHYSICAL.parse().unwrap(), own);
    }
    set_world(World::new(description.build(), root.path().to_owned()));
    Setup { container: IommuContext::open().unwrap(), _sysfs: root, _turn: turn }
}

impl Setup {
    fn open(&self, device: &str, token: Option<&str>) -> Result<Arc<AssignedDevice>, io::Error> {
        let vf_token = token.map(|token| token.parse().unwrap());
        let options = DeviceOptions { vf_token, ..DeviceOptions::default() };
        Ok(self.container.open_device_with(device.parse().unwrap(), options)?)
    }

    #[track_caller]
    fn refuses(&self, device: &str, token: Option<&str>, kind: io::ErrorKind, text: &str) {
        let error = self.open(device, token).unwrap_err();
        assert_eq!((error.kind(), error.to_string()), (kind, format!("{device}: {text}")));
        assert!(!error.to_string().contains(TOKEN), "the token is printed");
    }
}

#[test]
fn a_virtual_function_is_opened_with_the_token_of_its_physical_function() {
    for kernel in [Kernel::Linux6_1, Kernel::Linux6_12] {
        let setup = setup(kernel, true);
        setup.refuses(
            VIRTUAL,
            None,
            io::ErrorKind::PermissionDenied,
            "it needs a VF token (EACCES), because its physical function 0000:04:00.0 is on \
             vfio-pci: open 0000:04:00.0 with a token, and this device with the same one",
        );
        let wrong = "the VF token is not that of its physical function 0000:04:00.0 (EACCES): open \
                     0000:04:00.0 with this token first; while its virtual functions are in use, \
                     their token stays";
        setup.refuses(VIRTUAL, Some(TOKEN), io::ErrorKind::PermissionDenied, wrong);
        let physical = setup.open(PHYSICAL, Some(TOKEN)).unwrap();
        setup.refuses(VIRTUAL, Some(OTHER), io::ErrorKind::PermissionDenied, wrong);
        let virtual_ = setup.open(VIRTUAL, Some(TOKEN)).unwrap();
        drop(physical);
        setup.refuses(
            PHYSICAL,
            None,
            io::ErrorKind::PermissionDenied,
            "it needs the VF token of its virtual functions (EACCES), because they are in use: \
             open it with the same token",
        );
        setup.refuses(
            PHYSICAL,
            Some(OTHER),
            io::ErrorKind::PermissionDenied,
            "the VF token is not that of its virtual functions, which are in use (EACCES): open \
             it with their token, or end their users",
        );
        setup.open(PHYSICAL, Some(TOKEN)).unwrap();
        drop(virtual_);
        setup.open(PHYSICAL, Some(OTHER)).unwrap();
    }
}

#[test]
fn a_device_that_takes_no_token_is_opened_without_one() {
    let setup = setup(Kernel::Linux6_12, false);
    setup.refuses(
        PLAIN,
        Some(TOKEN),
        io::ErrorKind::InvalidInput,
        "it takes no VF token (EINVAL), because it has no virtual functions and is none; open it \
         without a token",
    );
    setup.refuses(
        VIRTUAL,
        Some(TOKEN),
        io::ErrorKind::InvalidInput,
        "it takes no VF token (EINVAL), because vfio-pci did not make it: its physical function \
         0000:04:00.0 has another driver; open it without a token",
    );
    for device in [PLAIN, VIRTUAL] {
        setup.open(device, None).unwrap();
    }
}

#[test]
fn names_a_kernel_that_knows_no_tokens() {
    let setup = setup(Kernel::Linux5_4, true);
    setup.refuses(
        PHYSICAL,
        Some(TOKEN),
        io::ErrorKind::Unsupported,
        "the kernel did not find it by a name with a VF token (ENODEV): Linux has VF tokens since \
         5.7",
    );
}

#[test]
fn a_refused_token_leaves_nothing_open() {
    let setup = setup(Kernel::Linux6_12, true);
    setup.open(VIRTUAL, None).unwrap_err();
    setup.open(PLAIN, Some(TOKEN)).unwrap_err();
    drop(setup.container);
    let own = world().take().unwrap();
    assert_eq!((own.system.open_fds(), own.system.containers()), (vec![], 0));
}
