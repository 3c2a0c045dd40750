//! What the host does to a device that a guest uses: it takes it away.

use guest::Report;
use lab::{Device, Error, Guest, L1, Outcome, times};

use crate::Test;
use crate::support::{assigned, boot};

/// All behind ports of their own.
pub const DEVICES: &[Device] = &[
    Device::PluggedNvme,
    Device::PluggedNvme,
    Device::PluggedNvme,
    Device::PluggedNvme,
];

pub const TESTS: &[Test] = &[("devices are unbound under I/O", unbound)];

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
    let lost = outcome
        .reports
        .iter()
        .filter(|report| matches!(report, Report::Lost { .. }));
    assert_eq!(lost.count(), count, "{}", outcome.account());
    let lines: Vec<&str> = outcome.stderr.lines().collect();
    assert_eq!(lines.len(), count, "{}", outcome.account());
    for (index, line) in lines.iter().enumerate() {
        let address = l1.machine().address(index);
        assert!(
            line.contains(&format!("{address}: the host asks for the device")),
            "{line}"
        );
    }
}

/// Does `round` with as many devices as are left, until so many have been taken; says how long each took.
fn repeat(
    what: &str,
    l1: &mut L1,
    mut round: impl FnMut(&mut L1, usize) -> Result<Vec<u64>, Error>,
) -> Result<(), Error> {
    let all = usize::try_from(times(3, 50)).unwrap();
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
    assert!(longest < MOST_NS, "{taken:?}");
    Ok(())
}

fn unbound(l1: &mut L1) -> Result<(), Error> {
    repeat("unbound under I/O", l1, |l1, count| {
        let mut guest = reader(l1, count)?;
        for index in 0..count {
            let address = l1.machine().address(index);
            guest = guest.run_at(&marker(index), vec!["/init".into(), "unbind".into(), address]);
        }
        let outcome = boot(l1, &guest)?;
        check_lost(l1, &outcome, count);
        let sightings = outcome.finished.sightings.iter();
        Ok(sightings.map(|sighting| nanoseconds(&sighting.said)).collect())
    })
}

/// Of `unbound in 123 ns`.
fn nanoseconds(said: &str) -> u64 {
    let number = said
        .strip_prefix("unbound in ")
        .and_then(|rest| rest.trim().strip_suffix(" ns"));
    number
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("not unbound: {said}"))
}
