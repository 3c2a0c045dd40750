//! A guest that works its devices, switches them off and on, takes their drivers away and reboots, for as long as one
//! wants to wait.

use std::time::{Duration, Instant};

use guest::Report;
use lab::protocol::Sighting;
use lab::{Error, Guest, L1, times};

use crate::Test;
use crate::held::{Held, field};
use crate::support::{assigned, boot, counter, faults};

/// On a machine with two NVMes first.
pub const TESTS: &[Test] = &[("soak: two disks are worked through reboots", soak)];

/// Of each life of the guest. What was written is read back. The toggles take a disk's driver away, so they come last.
const LIFE: &str = "write:1M@8M,rebind:1,hash:1M,write:1M@16M,read:1000,toggle:100";
const STATUS: &str = "/proc/{pid}/status";
const MAPS: &str = "/proc/{pid}/maps";
const FDS: &str = "/proc/{pid}/fd";
/// What RSS may differ by, in KiB: the allocator's slack.
const SLACK_KIB: u64 = 256;

/// What a VMM has.
#[derive(Clone, Copy, Debug)]
struct Size {
    rss_kib: u64,
    fds: usize,
    mappings: usize,
}

impl Size {
    fn of(sighting: &Sighting) -> Self {
        let lines = |path| sighting.files[path].lines().count();
        Self {
            rss_kib: field(&sighting.files[STATUS], "VmRSS:").unwrap(),
            fds: lines(FDS),
            mappings: lines(MAPS),
        }
    }
}

/// Begins anew with another VMM until the time is over, 20 minutes of the outer clock in its long form.
fn soak(l1: &mut L1) -> Result<(), Error> {
    let (reboots, length) = (times(2, 25), Duration::from_secs(times(1, 20 * 60)));
    let devices = [assigned(l1, 0)?, assigned(l1, 1)?];
    let (held, faulted, begin) = (Held::now(l1)?, faults(l1)?, Instant::now());
    let mut lives = 0;
    while begin.elapsed() < length {
        let sizes = work(l1, &devices, reboots)?;
        lives += reboots + 1;
        println!("after {} s: {lives} lives, {sizes:?}", begin.elapsed().as_secs());
        let [settled, last] = sizes;
        assert!(last.rss_kib <= settled.rss_kib + SLACK_KIB, "{sizes:?}");
        assert_eq!((last.fds, last.mappings), (settled.fds, settled.mappings));
        assert_eq!(Held::now(l1)?, held);
        assert_eq!(faults(l1)?, faulted);
    }
    Ok(())
}

/// One VMM: how large it was when its first lives had settled, and at its last reboot.
fn work(l1: &mut L1, devices: &[String], reboots: u64) -> Result<[Size; 2], Error> {
    let looked =
        [times(1, 5), reboots].map(|number| format!("\"report\":\"reboot\",\"number\":{number}}}"));
    let mut guest = Guest::new(&format!("{LIFE},reboots:{reboots}")).memory("128M").reboots();
    for device in devices {
        guest = guest.device(device);
    }
    for marker in &looked {
        guest = guest.look_at(marker, &[STATUS, FDS, MAPS]);
    }
    let outcome = boot(l1, &guest)?;
    let account = outcome.account();
    assert_eq!(counter(&outcome, "/reboots"), reboots, "{account}");
    let lives = usize::try_from(reboots).unwrap() + 1;
    let right = |report: &&Report| match report {
        Report::Write { same, .. } => *same,
        Report::Toggle { wrong, .. } => *wrong == 0,
        Report::Hash { .. } | Report::Rebind { .. } | Report::Read { .. } => true,
        _ => false,
    };
    // Of both disks, but for the toggles.
    assert_eq!(outcome.reports.iter().filter(right).count(), lives * 11, "{account}");
    let sightings = &outcome.finished.sightings;
    Ok([0, 1].map(|index: usize| Size::of(&sightings[index])))
}
