//! The model of /dev/vfio and L1's /dev/vfio agree on every check and on random sequences of calls.

use lab::protocol::{Ending, Program, Request};
use lab::{Device, Error, L1, place};

use crate::Test;
use crate::support::{NOBODY, VFIO, assigned, take};

pub const TESTS: &[Test] = &[
    ("conformance: model and kernel agree on all checks and 2000 random sequences", as_root),
    ("conformance: model and kernel agree on a limit of locked memory", with_little_memory),
    ("conformance: model and kernel agree on a group that is not viable", not_viable),
];

/// For a kernel with iommufd.
pub const ON_IOMMUFD: &[Test] = &[
    ("conformance: model and kernel agree on iommufd and character devices", with_iommufd),
    ("conformance: model and kernel agree on memory that iommufd counts by user", counted_by_user),
];

/// For the small 7.3 kernel, in the long form.
pub const ON_7_3: &[Test] = &[
    ("conformance: model and kernel agree on 7.3, in 60000 random calls", at_length),
    ("conformance: model and kernel agree on memory that iommufd counts by user", counted_by_user),
];

/// A random seed, from L1's kernel.
fn fresh_seed(l1: &mut L1) -> Result<String, Error> {
    let uuid = l1.read("/proc/sys/kernel/random/uuid")?;
    let digits: String = uuid.chars().filter(char::is_ascii_hexdigit).take(8).collect();
    Ok(u64::from_str_radix(&digits, 16).unwrap().to_string())
}

/// Sets the reset methods that the kernel may use for a device. A reset takes 0.1 s and is not
/// tested here, so the tests turn all methods off.
fn set_reset_method(l1: &mut L1, device: &str, method: &str) -> Result<(), Error> {
    l1.perform(&Request::Write {
        path: format!("/sys/bus/pci/devices/{device}/reset_method"),
        contents: method.into(),
    })
}

/// Binds the two NVMes to vfio-pci, without resets.
fn nvmes(l1: &mut L1) -> Result<[String; 2], Error> {
    let nvmes = [assigned(l1, 0)?, assigned(l1, 1)?];
    for nvme in &nvmes {
        set_reset_method(l1, nvme, "\n")?;
    }
    Ok(nvmes)
}

/// Runs the program on the groups of `devices`, and asserts that model and kernel agree.
fn conforms(l1: &mut L1, devices: &[String], rest: &[&str], program: Program) -> Result<(), Error> {
    let mut arguments = vec![place::CONFORMANCE];
    for device in devices {
        arguments.extend(["--device", device]);
    }
    arguments.extend(rest);
    let run = l1.run(Program {
        arguments: arguments.into_iter().map(str::to_owned).collect(),
        ..program
    })?;
    let seconds = run.finished.elapsed_ns / 1_000_000_000;
    println!("in {seconds} s of L1's time: {}", run.stdout.trim_end());
    assert_eq!(run.finished.ending, Ending::Status(0), "{}\n{}", run.stdout, run.stderr);
    Ok(())
}

fn as_root(l1: &mut L1) -> Result<(), Error> {
    let devices = [nvmes(l1)?.as_slice(), &[conventional(l1)?]].concat();
    let fixed = ["--sequences", "1000", "--seed", "0"];
    conforms(l1, &devices, &fixed, Program::default())?;
    let seed = fresh_seed(l1)?;
    let fresh = ["--only-random", "--sequences", "1000", "--seed", &seed];
    conforms(l1, &devices, &fresh, Program::default())?;
    restore(l1, &devices)
}

/// Binds a NIC with INTx only to vfio-pci: one behind a bridge, or else the rtl8139.
fn conventional(l1: &mut L1) -> Result<String, Error> {
    if !l1.machine().devices.contains(&Device::SharedGroup) {
        return take(l1, Device::Rtl8139);
    }
    // A reset of the NICs' bus takes a second. The kernel refuses it while one of them has no
    // driver.
    let [nic, neighbour, _] = l1.machine().nics();
    l1.bind(&neighbour, None)?;
    l1.bind(&nic, VFIO)?;
    Ok(nic)
}

fn with_little_memory(l1: &mut L1) -> Result<(), Error> {
    let nvmes = nvmes(l1)?;
    for path in ["/dev/kvm", "/dev/vfio"] {
        l1.perform(&Request::Own { path: path.into(), user: NOBODY })?;
    }
    let limited = Program { user: Some(NOBODY), memlock: Some(96 << 10), ..Program::default() };
    conforms(l1, &nvmes, &["--sequences", "200", "--seed", "5000"], limited)?;
    restore(l1, &nvmes)
}

/// The host uses one of the NICs behind a bridge.
fn not_viable(l1: &mut L1) -> Result<(), Error> {
    let nvmes = nvmes(l1)?;
    let [ours, hosts, _] = l1.machine().nics();
    l1.bind(&ours, VFIO)?;
    l1.bind(&hosts, Some("e1000"))?;
    let devices = [nvmes.as_slice(), &[ours]].concat();
    let rest = ["--sequences", "200", "--seed", "6000"];
    conforms(l1, &devices, &rest, Program::default())?;
    l1.bind(&hosts, None)?;
    restore(l1, &devices)
}

/// The NVMes and a NIC, and the NIC's neighbour: two devices of one group are bound. The third NIC
/// has no driver, so that the kernel refuses to reset their bus.
fn nvmes_and_nic(l1: &mut L1) -> Result<(Vec<String>, String), Error> {
    let nvmes = nvmes(l1)?;
    let [nic, neighbour, third] = l1.machine().nics();
    l1.bind(&third, None)?;
    l1.bind(&neighbour, VFIO)?;
    l1.bind(&nic, VFIO)?;
    Ok(([nvmes.as_slice(), &[nic]].concat(), neighbour))
}

fn with_iommufd(l1: &mut L1) -> Result<(), Error> {
    let (devices, neighbour) = nvmes_and_nic(l1)?;
    let fixed = ["--sequences", "1000", "--seed", "0"];
    conforms(l1, &devices, &fixed, Program::default())?;
    let seed = fresh_seed(l1)?;
    let fresh = ["--only-random", "--sequences", "300", "--seed", &seed];
    conforms(l1, &devices, &fresh, Program::default())?;
    restore(l1, &[devices.as_slice(), &[neighbour]].concat())
}

/// As [`with_iommufd`], at length and from fresh seeds only.
fn at_length(l1: &mut L1) -> Result<(), Error> {
    let (devices, neighbour) = nvmes_and_nic(l1)?;
    let seed = fresh_seed(l1)?;
    conforms(l1, &devices, &["--sequences", "1300", "--seed", &seed], Program::default())?;
    restore(l1, &[devices.as_slice(), &[neighbour]].concat())
}

fn counted_by_user(l1: &mut L1) -> Result<(), Error> {
    let nvmes = nvmes(l1)?;
    for path in ["/dev/kvm", "/dev/vfio", "/dev/iommu"] {
        l1.perform(&Request::Own { path: path.into(), user: NOBODY })?;
    }
    let limited = Program { user: Some(NOBODY), memlock: Some(96 << 10), ..Program::default() };
    conforms(l1, &nvmes, &["--sequences", "200", "--seed", "5000"], limited)?;
    restore(l1, &nvmes)
}

/// Restores the machine for other tests: allows resets of the NVMes, and unbinds all devices.
fn restore(l1: &mut L1, devices: &[String]) -> Result<(), Error> {
    for nvme in [l1.machine().address(0), l1.machine().address(1)] {
        set_reset_method(l1, &nvme, "default")?;
    }
    devices.iter().try_for_each(|device| l1.bind(device, None))
}
