//! A guest uses its devices, toggles their decoding, rebinds their drivers and reboots, repeatedly.

use std::time::{Duration, Instant};

use guest::Report;
use lab::protocol::Sighting;
use lab::{Error, Guest, L1, times};

use crate::Test;
use crate::held::{Held, field};
use crate::support::{assigned, boot, counter, faults};

/// On a machine with two NVMes first.
pub const TESTS: &[Test] =
    &[("soak: two disks work through reboots, and the VMM does not grow", soak)];

/// The steps of the guest after each boot. `write` reads back what it wrote. `toggle` unbinds the
/// driver of a disk, so it comes last.
const STEPS: &str = "write:1M@8M,rebind:1,hash:1M,write:1M@16M,read:1000,toggle:100";
const STATUS: &str = "/proc/{pid}/status";
const MAPS: &str = "/proc/{pid}/maps";
const FDS: &str = "/proc/{pid}/fd";
/// The allowed growth of RSS in KiB, for the allocator.
const SLACK_KIB: u64 = 256;

/// The size of a VMM.
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

/// Runs VMMs, one after another, until the time is over: 20 minutes of the host's clock in the long
/// form.
fn soak(l1: &mut L1) -> Result<(), Error> {
    let (reboots, length) = (times(2, 25), Duration::from_secs(times(1, 20 * 60)));
    let devices = [assigned(l1, 0)?, assigned(l1, 1)?];
    let (held, faulted, begin) = (Held::now(l1)?, faults(l1)?, Instant::now());
    let mut boots = 0;
    while begin.elapsed() < length {
        let sizes = work(l1, &devices, reboots)?;
        boots += reboots + 1;
        println!("after {} s: {boots} boots, {sizes:?}", begin.elapsed().as_secs());
        let [early, last] = sizes;
        assert!(last.rss_kib <= early.rss_kib + SLACK_KIB, "{sizes:?}");
        assert_eq!((last.fds, last.mappings), (early.fds, early.mappings));
        assert_eq!(Held::now(l1)?, held);
        assert_eq!(faults(l1)?, faulted);
    }
    Ok(())
}

/// Runs one VMM; returns its size after the first reboots, and at the last reboot.
fn work(l1: &mut L1, devices: &[String], reboots: u64) -> Result<[Size; 2], Error> {
    let markers =
        [times(1, 5), reboots].map(|number| format!("\"report\":\"reboot\",\"number\":{number}}}"));
    let mut guest = Guest::new(&format!("{STEPS},reboots:{reboots}")).memory("128M").reboots();
    for device in devices {
        guest = guest.device(device);
    }
    for marker in &markers {
        guest = guest.look_at(marker, &[STATUS, FDS, MAPS]);
    }
    let outcome = boot(l1, &guest)?;
    let details = outcome.details();
    assert_eq!(counter(&outcome, "/reboots"), reboots, "{details}");
    let boots = usize::try_from(reboots).unwrap() + 1;
    let is_right = |report: &&Report| match report {
        Report::Write { same, .. } => *same,
        Report::Toggle { wrong, .. } => *wrong == 0,
        Report::Hash { .. } | Report::Rebind { .. } | Report::Read { .. } => true,
        _ => false,
    };
    // Each boot makes five reports for each of the two disks, and one for the toggles.
    assert_eq!(outcome.reports.iter().filter(is_right).count(), boots * 11, "{details}");
    let sightings = &outcome.finished.sightings;
    Ok([0, 1].map(|index: usize| Size::of(&sightings[index])))
}
