//! The commands that prepare a host: `vmm check`, `devices`, `bind` and `unbind`.

use lab::protocol::{Ending, Program};
use lab::{Error, Guest, L1, Run, place};

use crate::Test;
use crate::support::{NOBODY, VFIO, assert_parts, assigned, boot};

pub const TESTS: &[Test] = &[
    ("tools: bind and unbind move a device to vfio-pci and back, twice", round_trip),
    ("tools: a bound NVMe is listed, passes the check and boots a guest", bound),
    ("tools: all commands name the device that makes a group not viable", shared_group),
    ("tools: unbind refuses a device in use", in_use),
    ("tools: bind reports a missing permission", no_permission),
];

pub const SUCCESS: Ending = Ending::Status(0);

/// Runs `vmm` in L1 with these words as arguments.
fn vmm(l1: &mut L1, words: &str, user: Option<u32>) -> Result<Run, Error> {
    let words = [place::VMM].into_iter().chain(words.split(' '));
    l1.run(Program { arguments: words.map(str::to_owned).collect(), user, ..Program::default() })
}

/// Runs `vmm` as root and asserts how it ends; returns its output.
pub fn output(l1: &mut L1, words: &str, ending: Ending) -> Result<String, Error> {
    let run = vmm(l1, words, None)?;
    let text = format!("{}{}", run.stdout, run.stderr);
    assert_eq!(run.finished.ending, ending, "vmm {words} printed:\n{text}");
    Ok(text)
}

/// Asserts a device's driver and its `driver_override`, from sysfs.
fn assert_at(l1: &mut L1, device: &str, driver: &str, driver_override: &str) -> Result<(), Error> {
    let folder = format!("/sys/bus/pci/devices/{device}");
    assert_parts(&l1.read(&format!("{folder}/uevent"))?, &[&format!("DRIVER={driver}\n")]);
    assert_eq!(l1.read(&format!("{folder}/driver_override"))?.trim(), driver_override);
    Ok(())
}

fn round_trip(l1: &mut L1) -> Result<(), Error> {
    let device = l1.machine().address(0);
    l1.bind(&device, Some("nvme"))?;
    for _ in 0..2 {
        let text = output(l1, &format!("bind {device}"), SUCCESS)?;
        assert_parts(&text, &[&format!("{device}: vfio-pci (was: nvme); alone in group ")]);
        assert_at(l1, &device, "vfio-pci", "vfio-pci")?;
        let text = output(l1, &format!("bind {device}"), SUCCESS)?;
        assert_parts(&text, &[&format!("{device}: vfio-pci, as before")]);

        let text = output(l1, &format!("unbind {device}"), SUCCESS)?;
        assert_parts(&text, &[&format!("{device}: nvme (was: vfio-pci)")]);
        assert_at(l1, &device, "nvme", "(null)")?;
        let text = output(l1, &format!("unbind {device}"), SUCCESS)?;
        assert_parts(&text, &[&format!("{device}: nvme, as before")]);
    }
    Ok(())
}

fn bound(l1: &mut L1) -> Result<(), Error> {
    let device = l1.machine().address(0);
    output(l1, &format!("bind {device}"), SUCCESS)?;
    let list = output(l1, "devices", SUCCESS)?;
    let line = list.lines().find(|line| line.starts_with(&device));
    let line = line.unwrap_or_else(|| panic!("no {device} in:\n{list}"));
    assert_parts(line, &[" vfio-pci ", " yes ", "1b36:0010, class 010802"]);

    let text = output(l1, &format!("check {device}"), SUCCESS)?;
    assert!(!text.contains("FAIL") && !text.contains("warning"), "{text}");
    let parts =
        ["remaps interrupts", "(msi)", "resets by: ", "BAR0 16K 64-bit", "MSI-X with 65 vectors"];
    assert_parts(&text, &parts);
    boot(l1, &Guest::new("hash:64K,end:off").device(&device)).map(|_| ())
}

/// A group of NICs behind a bridge is not viable while the host uses one of them.
fn shared_group(l1: &mut L1) -> Result<(), Error> {
    let [ours, hosts] = ["0000:01:01.0", "0000:01:02.0"];
    l1.bind(ours, Some("e1000"))?;
    l1.bind(hosts, Some("e1000"))?;
    let reason = format!("is not viable, because {hosts} is bound to e1000");
    let remedy = format!("vmm bind {hosts}");

    let text = output(l1, &format!("bind {ours}"), SUCCESS)?;
    assert_parts(&text, &["warning: group ", &reason, &remedy, &format!("{hosts} (e1000)")]);
    assert_parts(&output(l1, "devices", SUCCESS)?, &[&format!("{reason}: {remedy}")]);
    let text = output(l1, &format!("check {ours}"), Ending::Status(1))?;
    assert_parts(&text, &["FAIL", &reason, &format!("remedy: {remedy}\n")]);

    let text = output(l1, &remedy["vmm ".len()..], SUCCESS)?;
    assert!(!text.contains("warning"), "{text}");
    let text = output(l1, &format!("check {ours} {hosts}"), SUCCESS)?;
    assert!(!text.contains("FAIL"), "{text}");
    output(l1, &format!("unbind {ours} {hosts}"), SUCCESS)?;
    assert_at(l1, ours, "e1000", "(null)")?;
    assert_at(l1, hosts, "e1000", "(null)")?;
    l1.bind(ours, VFIO)?;
    l1.bind(hosts, VFIO)
}

fn in_use(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    let unbind = [place::VMM, "unbind", &device].map(str::to_owned).to_vec();
    let guest = Guest::new("pause:500").device(&device).run_at("\"report\":\"init\"", unbind);
    let outcome = boot(l1, &guest)?;
    let said = &outcome.finished.sightings[0].said;
    assert_parts(said, &["error: ", &device, "is in use", "fuser -v /dev/vfio/", "unbind --force"]);
    assert_at(l1, &device, "vfio-pci", "vfio-pci")
}

fn no_permission(l1: &mut L1) -> Result<(), Error> {
    let device = l1.machine().address(0);
    l1.bind(&device, Some("nvme"))?;
    let run = vmm(l1, &format!("bind {device}"), Some(NOBODY))?;
    assert_ne!(run.finished.ending, SUCCESS);
    assert_parts(
        &run.stderr,
        &["error: ", &device, "driver_override", "Permission denied", "sudo"],
    );
    assert_at(l1, &device, "nvme", "nvme")
}
