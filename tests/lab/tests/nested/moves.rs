//! What a guest may do with a function beside using it: move its BARs, switch it off and on, reset it, take
//! its driver away, reboot.

use guest::Report;
use lab::{Device, Error, Guest, L1, Outcome, sha256};

use crate::Test;
use crate::support::{assigned, boot, counter, hashes, take};

/// On machines with an NVMe first.
pub const TESTS: &[Test] = &[
    ("decoding goes off and on 10,000 times", |l1| toggle(l1, 1)),
    ("decoding goes off and on under a second CPU's reads", |l1| {
        toggle(l1, 2)
    }),
    ("a driver is unbound and bound 20 times", rebind),
    ("a guest reboots, and reboots again", reboot),
];

/// On a machine with an edu and an e1000e.
pub const ON_EDU: &[Test] = &[("a BAR moves about, over memory and another BAR too", wander)];

const TIMES: u64 = 10_000;
const REBINDS: u64 = 20;
const REBOOTS: u64 = 2;
const HASHED: usize = 1 << 20;

/// A thread of the guest's reads all the time.
fn toggle(l1: &mut L1, cpus: u32) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    let outcome = boot(
        l1,
        &Guest::new(&format!("toggle:{TIMES}")).device(&device).cpus(cpus),
    )?;
    let toggled = outcome.reports.iter().find_map(|report| match report {
        Report::Toggle {
            times,
            value,
            wrong,
            reads,
        } => Some((*times, *value, *wrong, *reads)),
        _ => None,
    });
    let Some((TIMES, value, wrong, reads)) = toggled else {
        panic!("{toggled:?}\n{}", outcome.account())
    };
    assert_eq!(wrong, 0, "{value:#x}\n{}", outcome.account());
    assert!(value != u32::MAX && reads > TIMES, "{}", outcome.account());
    // Away and back again, each time.
    let moved = counter(&outcome, "/kvm_ioctls/set_user_memory_region");
    assert!(moved >= 2 * TIMES, "{}", outcome.account());
    unmapped_once(&outcome);
    Ok(())
}

/// Memory was mapped at the start and unmapped at the end, and not touched between.
fn unmapped_once(outcome: &Outcome) {
    let regions = counter(outcome, "/ram_regions");
    let calls = ["map_dma", "unmap_dma"].map(|call| counter(outcome, &format!("/vfio_ioctls/{call}")));
    assert!(
        calls[0] == regions && calls[1] <= regions,
        "{}",
        outcome.account()
    );
}

fn rebind(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    let expected = sha256(&l1.image(0)?[..HASHED]);
    let steps = format!("rebind:{REBINDS},hash:1M,read:50");
    let outcome = boot(l1, &Guest::new(&steps).device(&device).cpus(2))?;
    let rebound = outcome
        .reports
        .iter()
        .any(|report| matches!(report, Report::Rebind { times: REBINDS, .. }));
    assert!(rebound, "{}", outcome.account());
    assert_eq!(hashes(&outcome), [expected], "{}", outcome.account());
    Ok(())
}

/// Each life reads the same from the disk, on the mappings of the first.
fn reboot(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    let expected = sha256(&l1.image(0)?[..HASHED]);
    let steps = format!("hash:1M,read:50,reboots:{REBOOTS}");
    let outcome = boot(l1, &Guest::new(&steps).device(&device).reboots())?;
    let lives = usize::try_from(REBOOTS).unwrap() + 1;
    assert_eq!(hashes(&outcome), vec![expected; lives], "{}", outcome.account());
    assert_eq!(counter(&outcome, "/reboots"), REBOOTS, "{}", outcome.account());
    unmapped_once(&outcome);
    Ok(())
}

fn wander(l1: &mut L1) -> Result<(), Error> {
    let edu = take(l1, Device::Edu)?;
    let nic = take(l1, Device::E1000e)?;
    let guest = Guest::new("wander").device_without_reset(&edu).device(&nic);
    let outcome = boot(l1, &guest)?;
    let wrong = outcome.reports.iter().find_map(|report| match report {
        Report::Wander { wrong } => Some(wrong.clone()),
        _ => None,
    });
    assert_eq!(wrong, Some(Vec::new()), "{}", outcome.account());
    Ok(())
}
