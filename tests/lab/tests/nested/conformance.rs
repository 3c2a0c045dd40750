//! The model of /dev/vfio against L1's: every check on both, and random sequences of calls in step.

use lab::protocol::{Ending, Program, Request};
use lab::{Error, L1, place};

use crate::Test;
use crate::support::{VFIO, assigned};

pub const TESTS: &[Test] = &[
    ("conformance: checks and 2000 random sequences", as_root),
    ("conformance: a limit of locked memory", with_little_memory),
    ("conformance: a group that is not viable", not_viable),
];

/// A user without any capability.
const NOBODY: u32 = 65534;

/// A seed that no run had before, as far as L1's entropy goes.
fn fresh_seed(l1: &mut L1) -> Result<String, Error> {
    let uuid = l1.read("/proc/sys/kernel/random/uuid")?;
    let digits: String = uuid.chars().filter(char::is_ascii_hexdigit).take(8).collect();
    Ok(u64::from_str_radix(&digits, 16).unwrap().to_string())
}

/// Resets take a tenth of a second each, and are not what is tested: the kernel is told not to know any.
fn reset_by(l1: &mut L1, device: &str, method: &str) -> Result<(), Error> {
    l1.tell(&Request::Write {
        path: format!("/sys/bus/pci/devices/{device}/reset_method"),
        contents: method.into(),
    })
}

/// The two NVMes, which vfio-pci has now.
fn nvmes(l1: &mut L1) -> Result<[String; 2], Error> {
    let nvmes = [assigned(l1, 0)?, assigned(l1, 1)?];
    for nvme in &nvmes {
        reset_by(l1, nvme, "\n")?;
    }
    Ok(nvmes)
}

/// Runs the program on the groups of `devices`; all of its answers must agree.
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
    println!("in {seconds} s of L1's: {}", run.stdout.trim_end());
    assert_eq!(run.finished.ending, Ending::Status(0), "{}\n{}", run.stdout, run.stderr);
    Ok(())
}

fn as_root(l1: &mut L1) -> Result<(), Error> {
    let nvmes = nvmes(l1)?;
    // The NICs are reset together, which takes a second, unless one has no driver.
    let [nic, neighbour, _] = l1.machine().nics();
    l1.bind(&neighbour, None)?;
    l1.bind(&nic, VFIO)?;
    let devices = [nvmes.as_slice(), &[nic]].concat();
    let fixed = ["--sequences", "1000", "--seed", "0"];
    conforms(l1, &devices, &fixed, Program::default())?;
    let seed = fresh_seed(l1)?;
    let fresh = ["--only-random", "--sequences", "1000", "--seed", &seed];
    conforms(l1, &devices, &fresh, Program::default())?;
    tidy_up(l1, &devices)
}

fn with_little_memory(l1: &mut L1) -> Result<(), Error> {
    let nvmes = nvmes(l1)?;
    for path in ["/dev/kvm", "/dev/vfio"] {
        l1.tell(&Request::Own { path: path.into(), user: NOBODY })?;
    }
    let limited = Program { user: Some(NOBODY), memlock: Some(96 << 10), ..Program::default() };
    conforms(l1, &nvmes, &["--sequences", "200", "--seed", "5000"], limited)?;
    tidy_up(l1, &nvmes)
}

/// Of the NICs behind one bridge, one is the host's.
fn not_viable(l1: &mut L1) -> Result<(), Error> {
    let nvmes = nvmes(l1)?;
    let [ours, hosts, _] = l1.machine().nics();
    l1.bind(&ours, VFIO)?;
    l1.bind(&hosts, Some("e1000"))?;
    let devices = [nvmes.as_slice(), &[ours]].concat();
    let rest = ["--sequences", "200", "--seed", "6000"];
    conforms(l1, &devices, &rest, Program::default())?;
    l1.bind(&hosts, None)?;
    tidy_up(l1, &devices)
}

/// Other tests use the machine after these: NVMes can be reset again, and devices go back to nobody.
fn tidy_up(l1: &mut L1, devices: &[String]) -> Result<(), Error> {
    for nvme in [l1.machine().address(0), l1.machine().address(1)] {
        reset_by(l1, &nvme, "default")?;
    }
    devices.iter().try_for_each(|device| l1.bind(device, None))
}
