//! The host takes a device away that a guest uses.

use std::time::Instant;

use guest::Report;
use lab::protocol::Ending;
use lab::{Device, Error, Guest, L1, Outcome, times};

use crate::Test;
use crate::support::{assigned, boot, boot_along, counter, take};

/// All behind ports of their own.
pub const DEVICES: &[Device] = &[
    Device::PluggedNvme,
    Device::PluggedNvme,
    Device::PluggedNvme,
    Device::PluggedNvme,
    Device::VirtioRng,
];

pub const TESTS: &[Test] = &[
    ("devices are unbound under I/O", unbound),
    ("devices are unplugged under I/O", unplugged),
    ("a guest reboots without what it has lost", reboots_without),
    ("a device tells of an error", errs),
];

const DISKS: usize = 4;
/// What the VMM has to let a device go.
const MOST_NS: u64 = 2_000_000_000;
/// The guest's driver waits a second for a disk that does not answer, and not 30.
const IMPATIENT: &str = "console=ttyS0 panic=-1 quiet nvme_core.io_timeout=1";

/// What the guest prints when device number `index` is to go: all disks are being read, and so many have failed.
fn marker(index: usize) -> String {
    match index {
        0 => "\"report\":\"busy\"".to_owned(),
        lost => format!("\"lost\":{lost}}}"),
    }
}

/// A guest that reads four disks until `count` of them have failed.
fn reader(l1: &mut L1, count: usize) -> Result<Guest, Error> {
    let guest = Guest::new(&format!("lose:{count}@{DISKS}")).command_line(IMPATIENT);
    (0..DISKS).try_fold(guest, |guest, index| Ok(guest.device(&assigned(l1, index)?)))
}

/// The guest lost so many disks and ended by itself, and the VMM told of each device in one line.
fn check_lost(l1: &L1, outcome: &Outcome, count: usize) {
    let lost = outcome.reports.iter().filter(|report| matches!(report, Report::Lost { .. }));
    assert_eq!(lost.count(), count, "{}", outcome.account());
    let lines: Vec<&str> = outcome.stderr.lines().collect();
    assert_eq!(lines.len(), count, "{}", outcome.account());
    for (index, line) in lines.iter().enumerate() {
        let address = l1.machine().address(index);
        assert!(line.contains(&format!("{address}: the host asks for the device")), "{line}");
    }
}

/// Does `round` with as many devices as are left, until so many have been taken; says how long each took: in L1's
/// time where the host unbinds, by the outer clock where QEMU unplugs.
fn repeat(
    what: &str,
    l1: &mut L1,
    mut round: impl FnMut(&mut L1, usize) -> Result<Vec<u64>, Error>,
) -> Result<u64, Error> {
    let all = usize::try_from(times(4, 50)).unwrap();
    let mut taken = Vec::new();
    while taken.len() < all {
        let count = DISKS.min(all - taken.len());
        let ns = round(l1, count)?;
        assert_eq!(ns.len(), count);
        taken.extend(ns);
    }
    taken.sort_unstable();
    let (median, longest) = (taken[taken.len() / 2], taken[taken.len() - 1]);
    println!("{what}: {all} of {all}; {median} ns each (median), {longest} ns at most");
    Ok(longest)
}

fn unbound(l1: &mut L1) -> Result<(), Error> {
    let longest = repeat("unbound under I/O", l1, |l1, count| {
        let mut guest = reader(l1, count)?;
        for index in 0..count {
            let address = l1.machine().address(index);
            guest = guest.run_at(&marker(index), vec!["/init".into(), "unbind".into(), address]);
        }
        let outcome = boot(l1, &guest)?;
        check_lost(l1, &outcome, count);
        let sightings = outcome.finished.sightings.iter();
        Ok(sightings.map(|sighting| nanoseconds(&sighting.said)).collect())
    })?;
    assert!(longest < MOST_NS, "{longest} ns");
    Ok(())
}

/// Of `unbound in 123 ns`.
fn nanoseconds(said: &str) -> u64 {
    let number = said.strip_prefix("unbound in ").and_then(|rest| rest.trim().strip_suffix(" ns"));
    number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("not unbound: {said}"))
}

fn unplugged(l1: &mut L1) -> Result<(), Error> {
    repeat("unplugged under I/O", l1, |l1, count| {
        let guest = reader(l1, count)?;
        let ids: Vec<String> = (0..count).map(|index| l1.machine().id(index)).collect();
        let mut taken = Vec::new();
        let outcome = boot_along(l1, &guest, |monitor, printed| {
            while taken.len() < count && printed.contains(&marker(taken.len())) {
                let id = &ids[taken.len()];
                let begin = Instant::now();
                monitor.unplug(id)?;
                monitor.unplugged(id)?;
                taken.push(u64::try_from(begin.elapsed().as_nanos()).unwrap());
            }
            Ok(())
        })?;
        check_lost(l1, &outcome, count);
        (0..count).try_for_each(|index| l1.plug(index))?;
        Ok(taken)
    })
    .map(drop)
}

/// The second of two disks goes, and the guest comes back with the first.
fn reboots_without(l1: &mut L1) -> Result<(), Error> {
    let (stays, goes) = (assigned(l1, 0)?, assigned(l1, 1)?);
    let unbind = vec!["/init".into(), "unbind".into(), goes.clone()];
    let guest = Guest::new("lose:1@2,reboots:1")
        .command_line(IMPATIENT)
        .reboots()
        .device(&stays)
        .device(&goes)
        .run_at(&marker(0), unbind);
    let outcome = guest.boot(l1)?;
    assert!(outcome.is_success(), "{}", outcome.account());
    assert_eq!(counter(&outcome, "/reboots"), 1);
    let one_of_two =
        |report: &Report| matches!(report, Report::Error { what } if what.contains("1 of 2"));
    assert!(outcome.reports.iter().any(one_of_two), "{}", outcome.account());
    Ok(())
}

/// By AER: from the device to its port, to L1's kernel, to vfio-pci, to the VMM, which does as it was told.
fn errs(l1: &mut L1) -> Result<(), Error> {
    let device = take(l1, Device::VirtioRng)?;
    let id = l1.machine().id(DISKS);
    for (policy, steps, status, says) in [
        ("stop", "pause:5000", 1, "so the guest is stopped"),
        ("reset", "pause:500", 0, "it is reset"),
        ("detach", "pause:500", 0, "it is taken from the guest"),
        ("report", "pause:500", 0, "it stays with the guest"),
    ] {
        let guest = Guest::new(steps).memory("128M").device(&device);
        let mut has_failed = false;
        let outcome =
            guest.arguments(["--on-error", policy]).boot_along(l1, |monitor, printed| {
                if !has_failed && printed.contains("\"report\":\"init\"") {
                    has_failed = true;
                    monitor.fail(&id)?;
                }
                Ok(())
            })?;
        let account = outcome.account();
        assert_eq!(outcome.finished.ending, Ending::Status(status), "{account}");
        let line = outcome.stderr.lines().find(|line| line.contains(&device));
        assert!(line.is_some_and(|line| line.contains(says)), "{account}");
    }
    Ok(())
}
