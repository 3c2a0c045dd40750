//! Additions and removals that fail: the guest goes on, and nothing is left.

use lab::protocol::{Request, Sighting, Trigger};
use lab::{Error, Guest, L1, sha256};

use super::{INIT, SOCKET, add, agent, ask, assert_came, command, guest, in_turn, remove};
use crate::Test;
use crate::held::{Held, REFRESH, VMSTAT};
use crate::support::{NOBODY, VFIO, assert_parts, assigned, boot, hashes};
use crate::with_host::{HOST, share};

/// On machines with two NVMes first, and a shared group.
pub const TESTS: &[Test] = &[
    ("hot-plug: what fails is reported with a remedy, and the guest goes on", with_a_device),
    ("hot-plug: a first device that fails leaves nothing pinned", without_devices),
    ("hot-plug: a low limit of locked memory is reported before RAM is mapped", memlock),
];

/// On kernels with the control group of memory.
pub const OF_CGROUPS: &[Test] =
    &[("hot-plug: a low limit of the control group is reported before RAM is mapped", cgroup)];

/// On a machine with an NVMe first, and the host's root, which has strace.
pub const WITH_HOST: &[Test] = &[("hot-plug: each call of an addition fails in turn", each_call)];

const FDS: &str = "/proc/{pid}/fd";
const HASHED: usize = 64 << 10;

/// A command that fails, and parts of its error.
type Failure = (Vec<String>, Vec<String>);

fn failure(program: Vec<String>, parts: &[&str]) -> Failure {
    (program, parts.iter().map(|part| (*part).to_owned()).collect())
}

/// Runs the programs one after another at the guest's start. Before each, reads what the VMM has.
fn at_start(guest: Guest, programs: impl IntoIterator<Item = Vec<String>>) -> Guest {
    programs.into_iter().fold(guest, |mut guest, program| {
        guest.program.triggers.push(Trigger {
            marker: INIT.into(),
            files: [REFRESH, VMSTAT, FDS].map(str::to_owned).to_vec(),
            program,
            ..Trigger::default()
        });
        guest
    })
}

/// The number of the VMM's descriptors, and what the kernel holds for it.
fn holds(sighting: &Sighting) -> (usize, Held) {
    (sighting.files[FDS].lines().count(), Held::of(&sighting.files[VMSTAT]))
}

/// Asserts that each failure was reported, and left the VMM as it was.
fn assert_failed(sightings: &[Sighting], failures: &[Failure]) {
    let first = holds(&sightings[0]);
    for (sighting, (program, _)) in sightings.iter().zip(failures) {
        println!("{}:\n{}", program[1..].join(" "), sighting.said);
    }
    for (sighting, (_, parts)) in sightings.iter().zip(failures) {
        assert_parts(&sighting.said, parts);
    }
    for (sighting, (program, _)) in sightings[1..].iter().zip(failures) {
        assert_eq!(holds(sighting), first, "after {program:?}");
    }
}

/// The failures of requests that are not valid, or whose device is not ready.
fn failures(l1: &mut L1, own: &str, free: &str) -> Result<Vec<Failure>, Error> {
    let [nic, hosts, _] = l1.machine().nics();
    l1.bind(&nic, VFIO)?;
    l1.bind(&hosts, Some("e1000"))?;
    let other = if l1.machine().has_iommufd() { "type1" } else { "iommufd" };
    let with_iommu = ["add", SOCKET, "--vfio", free, "--iommu", other];
    let unbound = [command(&["unbind", free]), add(l1, &[free]), command(&["bind", free])];
    Ok(vec![
        failure(add(l1, &[own]), &["error: ", own, "the guest has this device already"]),
        failure(add(l1, &["0000:00:1e.0"]), &["0000:00:1e.0", "no such PCI device", "lspci -D"]),
        failure(add(l1, &["nvme0"]), &["nvme0", "0000:01:00.0"]),
        failure(in_turn(&unbound), &["error: ", free, "bound to nvme", "driver_override"]),
        failure(command(&with_iommu), &["error: the guest uses its devices by", "leave --iommu"]),
        failure(add(l1, &["fd=3"]), &["error: --vfio fd=3", "leave fd=N out"]),
        failure(add(l1, &[&format!("{free},at=01")]), &["slot 01", "give another slot"]),
        failure(add(l1, &[&nic]), &[&nic, "not viable", &hosts, "e1000", "vfio-pci"]),
        failure(add(l1, &[free, &nic]), &[&nic, "not viable", &hosts]),
        failure(add(l1, &[free, free]), &[free, "given twice"]),
        failure(remove(free), &[free, "the guest does not have this device"]),
        failure(remove("nvme0"), &["nvme0", "0000:01:00.0"]),
        failure(command(&["remove", "/tmp/none", own]), &["/tmp/none", "vmm --control"]),
    ])
}

/// The guest reads from one disk meanwhile, and has the other one at the end.
fn with_a_device(l1: &mut L1) -> Result<(), Error> {
    let devices = [assigned(l1, 0)?, assigned(l1, 1)?];
    let [own, free] = &devices;
    let failures = failures(l1, own, free)?;
    let guest = guest("read:500,functions:3,hash:64K").device(own);
    let guest = at_start(guest, failures.iter().map(|(program, _)| program.clone()));
    let outcome = boot(l1, &at_start(guest, [add(l1, &[free])]))?;
    let sightings = &outcome.finished.sightings;
    assert_eq!(sightings.len(), failures.len() + 1, "{}", outcome.details());
    assert_failed(sightings, &failures);
    assert_came(&sightings[failures.len()], free, 2);
    let expected = [0, 1].map(|index| l1.image(index).map(|image| sha256(&image[..HASHED])));
    let mut expected = expected.into_iter().collect::<Result<Vec<_>, _>>()?;
    expected.sort();
    assert_eq!(hashes(&outcome), expected, "{}", outcome.details());
    Ok(())
}

/// The device's group says that it reserves addresses at which the guest has RAM.
fn without_devices(l1: &mut L1) -> Result<(), Error> {
    let (reserved, free) = (assigned(l1, 0)?, assigned(l1, 1)?);
    let group = format!("/sys/bus/pci/devices/{reserved}/iommu_group/reserved_regions");
    let contents = "0x0000000001000000 0x0000000001ffffff reserved\n".to_owned();
    l1.perform(&Request::Cover { path: group.clone(), contents })?;
    let why = ["guest's RAM lies at", "reserves (reserved)", "guest that starts with the device"];
    let failures = [failure(add(l1, &[&free, &reserved]), &why)];
    let guest = guest("functions:2,hash:64K");
    let guest = at_start(guest, failures.iter().map(|(program, _)| program.clone()));
    let outcome = boot(l1, &at_start(guest, [add(l1, &[&free])]))?;
    l1.perform(&Request::Uncover { path: group })?;
    let sightings = &outcome.finished.sightings;
    assert_failed(sightings, &failures);
    assert_came(&sightings[1], &free, 1);
    assert_eq!(hashes(&outcome), [sha256(&l1.image(1)?[..HASHED])], "{}", outcome.details());
    Ok(())
}

/// The limit does not hold for root.
fn memlock(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    l1.perform(&Request::Own { path: "/dev/kvm".into(), user: NOBODY })?;
    let failures =
        [failure(add(l1, &[&device]), &["RLIMIT_MEMLOCK", "64 KiB", "ulimit -l 524288"])];
    let guest = guest("pause:500").limited(NOBODY, 64 << 10);
    let programs = failures.iter().map(|(program, _)| program.clone()).chain([Vec::new()]);
    let outcome = boot(l1, &at_start(guest, programs))?;
    assert_failed(&outcome.finished.sightings, &failures);
    Ok(())
}

/// The administrator lowers the limit of the VMM's group, and raises it again. Without the check the
/// kernel would kill the VMM.
fn cgroup(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    let limit = |value: &str| agent(&["write", "/sys/fs/cgroup/lab/memory.max", value]);
    let parts = ["more, and the control group of the VMM has", "/lab/memory.max", "MemoryMax="];
    let failures = [failure(in_turn(&[limit("400M"), add(l1, &[&device])]), &parts)];
    let again = in_turn(&[limit("600M"), add(l1, &[&device])]);
    let guest = guest("functions:2,hash:64K").memory("512M").in_cgroup("memory.max", "600M");
    let outcome = boot(l1, &at_start(guest, [failures[0].0.clone(), again]))?;
    let sightings = &outcome.finished.sightings;
    assert_failed(sightings, &failures);
    assert_came(&sightings[1], &device, 1);
    assert_eq!(hashes(&outcome), [sha256(&l1.image(0)?[..HASHED])], "{}", outcome.details());
    Ok(())
}

/// The guest goes on, and the VMM has no descriptor more. A call that may fail fails no addition; the
/// disk is removed then.
fn each_call(l1: &mut L1) -> Result<(), Error> {
    let (device, held) = (assigned(l1, 0)?, Held::now(l1)?);
    share(l1)?;
    let failing = agent(&["fail-each", HOST, "{pid}", "control"]);
    let programs = [&failing[..], &add(l1, &[&device]), &[";".to_owned()], &remove(&device)];
    // strace makes a call fail by another number, which seccomp would not allow.
    let guest = guest("button:600000,functions:2,hash:64K").arguments(["--seccomp", "off"]);
    let mut guest = at_start(guest, [programs.concat(), add(l1, &[&device])]);
    guest.program.triggers.push(Trigger {
        marker: INIT.into(),
        program: ask(SOCKET, "PUT", "vm.power-button"),
        ..Trigger::default()
    });
    let outcome = boot(l1, &guest)?;
    let sightings = &outcome.finished.sightings;
    println!("{}", sightings[0].said);
    let lines: Vec<&str> = sightings[0].said.lines().collect();
    assert!(lines.last().is_some_and(|line| line.ends_with("calls failed")), "{lines:?}");
    assert!(lines.len() > 20, "{lines:?}");
    let fds = holds(&sightings[0]).0;
    for line in &lines[..lines.len() - 1] {
        assert!(line.contains(&format!("; {fds} fds; ")), "{fds} before; {line}");
        assert!(line.contains("error: ") || line.contains("is free"), "{line}");
    }
    assert_eq!(holds(&sightings[1]), holds(&sightings[0]));
    assert_came(&sightings[1], &device, 1);
    assert_eq!(hashes(&outcome), [sha256(&l1.image(0)?[..HASHED])], "{}", outcome.details());
    assert_eq!(Held::now(l1)?, held);
    Ok(())
}
