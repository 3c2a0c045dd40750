//! The host takes a device away from a running guest, or the device reports an error.

use std::time::Instant;

use guest::Report;
use lab::protocol::Ending;
use lab::{Device, Error, Guest, L1, Outcome, times};

use crate::Test;
use crate::support::{assigned, boot, boot_along, counter, take};

/// The devices of the machine; each is behind its own port.
pub const DEVICES: &[Device] = &[
    Device::PluggedNvme,
    Device::PluggedNvme,
    Device::PluggedNvme,
    Device::PluggedNvme,
    Device::VirtioRng,
];

pub const TESTS: &[Test] = &[
    ("host: the host unbinds devices during I/O", unbound),
    ("host: the host unplugs devices during I/O", unplugged),
    ("host: a guest reboots without a device that the host has unbound", reboots_without),
    ("host: the VMM handles a device's error as --on-error selects", errs),
];

const DISKS: usize = 4;
/// The longest time that an unbind may take, in nanoseconds.
const MOST_NS: u64 = 2_000_000_000;
/// A kernel command line with an I/O timeout of 1 s instead of 30 s for NVMes. Multipath, which
/// Debian's kernels have on, would wait for another path to a lost disk.
const SHORT_TIMEOUT: &str =
    "console=ttyS0 panic=-1 quiet nvme_core.io_timeout=1 nvme_core.multipath=0";

/// The text that the guest prints when `index` disks have failed and it reads from the others.
fn marker(index: usize) -> String {
    match index {
        0 => "\"report\":\"busy\"".to_owned(),
        lost => format!("\"lost\":{lost}}}"),
    }
}

/// The VMM's message when the host takes a device away.
fn requested(address: &str) -> String {
    format!("{address}: the host requests the device")
}

/// A guest that reads from four disks until the first `count` of them have failed.
fn reader(l1: &mut L1, count: usize) -> Result<Guest, Error> {
    let guest = Guest::new(&format!("lose:{count}@{DISKS}")).command_line(SHORT_TIMEOUT);
    let guest =
        (0..count).fold(guest, |guest, index| guest.logs(&requested(&l1.machine().address(index))));
    (0..DISKS).try_fold(guest, |guest, index| Ok(guest.device(&assigned(l1, index)?)))
}

/// Asserts that `count` disks failed in the guest, and that the VMM reported each in one line.
fn check_lost(l1: &L1, outcome: &Outcome, count: usize) {
    let lost = outcome.reports.iter().filter(|report| matches!(report, Report::Lost { .. }));
    assert_eq!(lost.count(), count, "{}", outcome.details());
    let requests = outcome.stderr.lines().filter(|line| line.contains("the host requests"));
    let lines: Vec<&str> = requests.collect();
    assert_eq!(lines.len(), count, "{}", outcome.details());
    for (index, line) in lines.iter().enumerate() {
        let address = l1.machine().address(index);
        assert!(line.contains(&requested(&address)), "{line}");
    }
}

/// Takes 4 devices away, or 50 in the long form: repeats `round`, which takes up to four away and
/// returns how long each took. Prints the median and returns the longest time.
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
    let longest = repeat("unbound during I/O", l1, |l1, count| {
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

/// The time in the agent's answer, such as `unbound in 123 ns`.
fn nanoseconds(said: &str) -> u64 {
    let number = said.strip_prefix("unbound in ").and_then(|rest| rest.trim().strip_suffix(" ns"));
    number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("not unbound: {said}"))
}

fn unplugged(l1: &mut L1) -> Result<(), Error> {
    repeat("unplugged during I/O", l1, |l1, count| {
        let guest = reader(l1, count)?;
        let ids: Vec<String> = (0..count).map(|index| l1.machine().id(index)).collect();
        let mut taken = Vec::new();
        let outcome = boot_along(l1, &guest, |monitor, printed| {
            while taken.len() < count && printed.contains(&marker(taken.len())) {
                let id = &ids[taken.len()];
                let begin = Instant::now();
                monitor.unplug(id)?;
                monitor.wait_unplugged(id)?;
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

/// The host unbinds the second of two disks, and the guest reboots with the first.
fn reboots_without(l1: &mut L1) -> Result<(), Error> {
    let (stays, goes) = (assigned(l1, 0)?, assigned(l1, 1)?);
    let unbind = vec!["/init".into(), "unbind".into(), goes.clone()];
    let guest = Guest::new("lose:1@2,reboots:1")
        .command_line(SHORT_TIMEOUT)
        .reboots()
        .device(&stays)
        .device(&goes)
        .logs(&requested(&goes))
        .run_at(&marker(0), unbind);
    let outcome = guest.boot(l1)?;
    assert!(outcome.is_success(), "{}", outcome.details());
    assert_eq!(counter(&outcome, "/reboots"), 1);
    let one_of_two =
        |report: &Report| matches!(report, Report::Error { what } if what.contains("1 of 2"));
    assert!(outcome.reports.iter().any(one_of_two), "{}", outcome.details());
    Ok(())
}

/// An AER error goes from the device to its port, to L1's kernel, to vfio-pci, and to the VMM.
fn errs(l1: &mut L1) -> Result<(), Error> {
    let device = take(l1, Device::VirtioRng)?;
    let id = l1.machine().id(DISKS);
    for (policy, steps, status, message) in [
        ("stop", "pause:5000", 1, "so the VMM stops the guest"),
        ("reset", "pause:500", 0, "the VMM resets it"),
        ("detach", "pause:500", 0, "the VMM detaches it"),
        ("report", "pause:500", 0, "it stays attached"),
    ] {
        let guest = Guest::new(steps).memory("128M").device(&device).logs(message);
        let mut has_failed = false;
        let outcome =
            guest.arguments(["--on-error", policy]).boot_along(l1, |monitor, printed| {
                if !has_failed && printed.contains("\"report\":\"init\"") {
                    has_failed = true;
                    monitor.inject_error(&id)?;
                }
                Ok(())
            })?;
        let details = outcome.details();
        assert_eq!(outcome.finished.ending, Ending::Status(status), "{details}");
        let line = outcome.stderr.lines().find(|line| line.contains(&device));
        assert!(line.is_some_and(|line| line.contains(message)), "{details}");
    }
    Ok(())
}
