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

/// Runs the program with both NVMes and another device's group; all of its answers must agree.
fn conforms(l1: &mut L1, other: &[&str], rest: &[&str], program: Program) -> Result<(), Error> {
    let nvmes = [assigned(l1, 0)?, assigned(l1, 1)?];
    for nvme in &nvmes {
        reset_by(l1, nvme, "\n")?;
    }
    let mut arguments = vec![place::CONFORMANCE];
    for device in nvmes.iter().map(String::as_str).chain(other.iter().copied()) {
        arguments.extend(["--device", device]);
    }
    arguments.extend(rest);
    let run = l1.run(Program {
        arguments: arguments.into_iter().map(str::to_owned).collect(),
        ..program
    })?;
    println!(
        "in {} s of L1's: {}",
        run.finished.elapsed_ns / 1_000_000_000,
        run.stdout.trim_end()
    );
    assert_eq!(
        run.finished.ending,
        Ending::Status(0),
        "{}\n{}",
        run.stdout,
        run.stderr
    );
    for nvme in &nvmes {
        reset_by(l1, nvme, "default")?;
    }
    Ok(())
}

fn as_root(l1: &mut L1) -> Result<(), Error> {
    for nic in l1.machine().nics() {
        l1.bind(&nic, None)?;
    }
    // Its neighbour has no driver, so that the two are not reset together, which takes a second.
    let [nic, _] = l1.machine().nics();
    l1.bind(&nic, VFIO)?;
    let fixed = ["--sequences", "1000", "--seed", "0"];
    conforms(l1, &[&nic], &fixed, Program::default())?;
    let seed = fresh_seed(l1)?;
    let fresh = ["--only-random", "--sequences", "1000", "--seed", &seed];
    conforms(l1, &[&nic], &fresh, Program::default())?;
    l1.bind(&nic, None)
}

fn with_little_memory(l1: &mut L1) -> Result<(), Error> {
    for index in 0..2 {
        assigned(l1, index)?;
    }
    for path in ["/dev/kvm", "/dev/vfio"] {
        l1.tell(&Request::Own {
            path: path.into(),
            user: NOBODY,
        })?;
    }
    let limited = Program {
        user: Some(NOBODY),
        memlock: Some(96 << 10),
        ..Program::default()
    };
    conforms(l1, &[], &["--sequences", "200", "--seed", "5000"], limited)
}

/// Of two NICs behind one bridge, one is the host's.
fn not_viable(l1: &mut L1) -> Result<(), Error> {
    let [ours, hosts] = l1.machine().nics();
    l1.bind(&ours, VFIO)?;
    l1.bind(&hosts, Some("e1000"))?;
    conforms(
        l1,
        &[&ours],
        &["--sequences", "200", "--seed", "6000"],
        Program::default(),
    )?;
    l1.bind(&hosts, None)?;
    l1.bind(&ours, None)
}
