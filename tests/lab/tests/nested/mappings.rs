//! Mappings for DMA while a guest runs and after its end.

use lab::protocol::{Ending, Program, Sighting};
use lab::{Error, Guest, L1, place};

use crate::Test;
use crate::held::{Held, REFRESH, VMSTAT, field, is_bus_master};
use crate::support::{assigned, boot, boot_with_nvme, counter, map_calls};

pub const TESTS: &[Test] = &[
    ("each RAM region takes one call to map it", one_map_for_a_region),
    ("nothing stays mapped or pinned after the end", nothing_stays_after_the_end),
    ("nothing stays mapped or pinned after SIGKILL", nothing_stays_after_a_kill),
    ("mapping costs at most 10% more than the bare ioctl", map_cost),
];

/// The guest's RAM.
const RAM_KIB: u64 = 512 << 10;

const INIT: &str = "\"report\":\"init\"";
const HASH: &str = "\"report\":\"hash\"";
const STATUS: &str = "/proc/{pid}/status";

fn one_map_for_a_region(l1: &mut L1) -> Result<(), Error> {
    let outcome = boot_with_nvme(l1, "look")?;
    let regions = counter(&outcome, "/ram_regions");
    assert!(regions > 0, "{}", outcome.details());
    assert_eq!(map_calls(&outcome), regions, "{}", outcome.details());
    Ok(())
}

/// Compares the two in turns in one run, with populated memory, by L1's clock.
fn map_cost(l1: &mut L1) -> Result<(), Error> {
    let devices = [assigned(l1, 0)?, assigned(l1, 1)?];
    let words =
        [place::CONFORMANCE, "--map-cost", "--device", &devices[0], "--device", &devices[1]];
    let run =
        l1.run(Program { arguments: words.map(str::to_owned).to_vec(), ..Program::default() })?;
    assert_eq!(run.finished.ending, Ending::Status(0), "{}", run.stderr);
    println!("{}", run.stdout.trim_end());
    let report: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    let ratio = report["ratio"].as_f64().unwrap();
    assert!(ratio > 0.5 && ratio <= 1.10, "{}", run.stdout);
    Ok(())
}

fn nothing_stays_after_the_end(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    let before = Held::now(l1)?;
    let guest =
        Guest::new("pause:100,hash:4M").device(&device).look_at(INIT, &[REFRESH, VMSTAT, STATUS]);
    let outcome = boot(l1, &guest)?;
    assert_held(l1, &outcome.finished.sightings[0], &before);
    assert_eq!(Held::now(l1)?, before);
    assert!(!is_bus_master(l1, &device)?, "{device} may still do DMA");
    Ok(())
}

/// Kills the VMM during reads. The device works for the next guest at once.
fn nothing_stays_after_a_kill(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    let before = Held::now(l1)?;
    let guest = Guest::new("hash:4M,read:100000").device(&device);
    let killed = guest.look_at(INIT, &[REFRESH, VMSTAT, STATUS]).signal_at(HASH, 9).boot(l1)?;
    assert_eq!(killed.finished.ending, Ending::Signal(9), "{}", killed.details());
    assert_held(l1, &killed.finished.sightings[0], &before);
    assert_eq!(Held::now(l1)?, before);
    assert!(!is_bus_master(l1, &device)?, "{device} may still do DMA");
    boot(l1, &Guest::new("hash:4M").device(&device)).map(|_| ())
}

/// Asserts that the guest's RAM was pinned, mapped and counted as locked while the guest ran. So
/// the counters that are compared after the end do change.
fn assert_held(l1: &L1, seen: &Sighting, before: &Held) {
    let during = Held::of(&seen.files[VMSTAT]);
    let ram_pages = RAM_KIB / l1.machine().kernel.page_kib();
    assert!(during.pinned_pages >= before.pinned_pages + ram_pages, "{during:?} {before:?}");
    assert!(
        during.table_pages.is_none() || during.table_pages > before.table_pages,
        "{during:?} {before:?}"
    );
    // type1 counts pinned pages as locked (vfio_lock_acct), iommufd as pinned (update_mm_locked_vm).
    let kib = |name| field(&seen.files[STATUS], name).unwrap();
    let locked_kib = kib("VmLck:").max(kib("VmPin:"));
    assert!(locked_kib >= RAM_KIB, "{locked_kib} KiB locked");
}
