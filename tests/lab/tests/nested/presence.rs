//! Devices that sleep, and devices that do not respond.

use lab::protocol::{Program, Request};
use lab::{Error, Guest, L1, place};

use crate::Test;
use crate::support::{assert_parts, assert_refused, assigned, boot};

/// On machines with an NVMe first.
pub const TESTS: &[Test] = &[("presence: a device in D3hot works in a guest", asleep)];

/// On a machine with NVMes behind ports.
pub const ON_PORTS: &[Test] =
    &[("presence: a device that does not respond is not ready and is refused", absent)];

const HASH: &str = "\"report\":\"hash\"";

/// Runs a program in L1; returns its output.
fn run(l1: &mut L1, words: &[&str]) -> Result<String, Error> {
    let arguments = words.iter().map(|word| (*word).to_owned()).collect();
    let run = l1.run(Program { arguments, ..Program::default() })?;
    Ok(format!("{}{}", run.stdout, run.stderr))
}

/// The device sleeps before the VMM opens it: vfio-pci wakes it. Then it is put to sleep behind the
/// kernel while the guest runs, and the guest reboots: the library wakes it.
fn asleep(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    let idle = l1.read(&format!("/sys/bus/pci/devices/{device}/power_state"))?;
    println!("power_state of an idle device on vfio-pci: {}", idle.trim());
    let said = run(l1, &["/init", "power", &device, "3"])?;
    assert!(said.contains("to 3"), "{said}");
    assert_parts(&run(l1, &[place::VMM, "check", &device])?, &["the device responds"]);
    boot(l1, &Guest::new("hash:64K").device(&device))?;

    let sleeps = ["/init", "power", &device, "3"].map(str::to_owned).to_vec();
    let guest = Guest::new("hash:64K,reboots:1").reboots().device(&device);
    let outcome = boot(l1, &guest.run_at(HASH, sleeps))?;
    let sightings: Vec<_> = outcome.finished.sightings.iter().map(|it| it.said.trim()).collect();
    println!("put to sleep under the guest: {sightings:?}");
    assert!(sightings.iter().any(|said| said.ends_with("from 0 to 3")), "{sightings:?}");
    assert_eq!(outcome.stderr, "", "{}", outcome.details());
    Ok(())
}

fn absent(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    run(l1, &["/init", "cut", &device])?;
    let list = run(l1, &[place::VMM, "devices"])?;
    let line = list.lines().find(|line| line.starts_with(&device)).unwrap_or_default();
    println!("{line}");
    let remedy = format!("echo 1 > /sys/bus/pci/devices/{device}/remove");
    assert_parts(line, &["no: the device does not respond", &remedy]);
    let check = run(l1, &[place::VMM, "check", &device])?;
    assert_parts(&check, &["config-space", "does not respond", &remedy]);
    let outcome = Guest::new("hash:64K").device(&device).boot(l1)?;
    println!("{}", outcome.stderr);
    assert_refused(&outcome, &[&device, "the device does not respond", &remedy]);
    remedy_helps(l1, &device)
}

/// The device responds again. The kernel has lost its state, and finds it by the commands that
/// `vmm` names.
fn remedy_helps(l1: &mut L1, device: &str) -> Result<(), Error> {
    run(l1, &["/init", "join", device])?;
    for path in [&format!("/sys/bus/pci/devices/{device}/remove"), "/sys/bus/pci/rescan"] {
        let (path, contents) = (path.to_owned(), "1".to_owned());
        l1.perform(&Request::Write { path, contents })?;
    }
    let device = assigned(l1, 0)?;
    boot(l1, &Guest::new("hash:64K").device(&device)).map(drop)
}
