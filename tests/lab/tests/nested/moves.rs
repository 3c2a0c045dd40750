//! A guest moves BARs, toggles decoding and power, resets functions, rebinds drivers, and reboots.

use guest::Report;
use lab::{Device, Error, Guest, Kernel, L1, Outcome, sha256};

use crate::Test;
use crate::support::{VFIO, assigned, boot, counter, hashes, of_functions, ram_calls, take};

/// On machines with an NVMe first.
pub const TESTS: &[Test] =
    &[("a driver is unbound and bound 20 times", rebind), ("a guest reboots twice", reboot)];

/// These take two minutes each, so they run on the fastest kernel only.
pub const LONG: &[Test] = &[
    ("decoding goes off and on 10,000 times", |l1| toggle(l1, 1)),
    ("decoding goes off and on while a second CPU reads", |l1| toggle(l1, 2)),
];

/// On a machine with devices of each kind.
pub const ON_ALL_DEVICES: &[Test] = &[
    ("a BAR moves, also over RAM and over another BAR", wander),
    ("a guest reboots with devices of each kind of reset", reboot_all),
];

const TIMES: u64 = 10_000;
const REBINDS: u64 = 20;
const REBOOTS: u64 = 2;
const HASHED: usize = 1 << 20;

/// Toggles decoding while a thread of the guest reads.
fn toggle(l1: &mut L1, cpus: u32) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    let outcome = boot(l1, &Guest::new(&format!("toggle:{TIMES}")).device(&device).cpus(cpus))?;
    let toggled = outcome.reports.iter().find_map(|report| match report {
        Report::Toggle { times, value, wrong, reads } => Some((*times, *value, *wrong, *reads)),
        _ => None,
    });
    let Some((TIMES, value, wrong, reads)) = toggled else {
        panic!("{toggled:?}\n{}", outcome.details())
    };
    assert_eq!(wrong, 0, "{value:#x}\n{}", outcome.details());
    assert!(value != u32::MAX && reads > TIMES, "{}", outcome.details());
    // Each time, the slot of the BAR is removed and set again.
    let moved = counter(&outcome, "/kvm_ioctls/set_user_memory_region");
    assert!(moved >= 2 * TIMES, "{}", outcome.details());
    assert_mapped_once(&outcome);
    Ok(())
}

/// Asserts that RAM was mapped once and unmapped at most once, and that BARs were unmapped as often
/// as mapped.
fn assert_mapped_once(outcome: &Outcome) {
    let regions = counter(outcome, "/ram_regions");
    let [mapped, unmapped] = ram_calls(outcome);
    assert!(mapped == regions && unmapped <= regions, "{}", outcome.details());
    assert_eq!(
        of_functions(outcome, "p2p_maps"),
        of_functions(outcome, "p2p_unmaps"),
        "{}",
        outcome.details()
    );
}

fn rebind(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    let expected = sha256(&l1.image(0)?[..HASHED]);
    let steps = format!("rebind:{REBINDS},hash:1M,read:50");
    // 6.1 cannot have the guard against double interrupts, and often hangs with two CPUs.
    let cpus = if l1.machine().kernel == Kernel::Stock61 { 1 } else { 2 };
    let outcome = boot(l1, &Guest::new(&steps).device(&device).cpus(cpus))?;
    let rebound = outcome
        .reports
        .iter()
        .any(|report| matches!(report, Report::Rebind { times: REBINDS, .. }));
    assert!(rebound, "{}", outcome.details());
    assert_eq!(hashes(&outcome), [expected], "{}", outcome.details());
    Ok(())
}

/// After each reboot the guest reads the same data, and the mappings of the first boot stay.
fn reboot(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    let expected = sha256(&l1.image(0)?[..HASHED]);
    let steps = format!("hash:1M,read:50,reboots:{REBOOTS}");
    let outcome = boot(l1, &Guest::new(&steps).device(&device).reboots())?;
    let boots = usize::try_from(REBOOTS).unwrap() + 1;
    assert_eq!(hashes(&outcome), vec![expected; boots], "{}", outcome.details());
    assert_eq!(counter(&outcome, "/reboots"), REBOOTS, "{}", outcome.details());
    assert_mapped_once(&outcome);
    Ok(())
}

/// Resets by FLR, by power management, by a bus reset, and by a bus reset of two devices together.
fn reboot_all(l1: &mut L1) -> Result<(), Error> {
    let nics = l1.machine().nics();
    nics.iter().try_for_each(|nic| l1.bind(nic, VFIO))?;
    let mut guest = Guest::new("disks:2,hash:1M,net:20,reboots:1").device(&nics[0]);
    for device in [Device::Nvme, Device::E1000e, Device::Ahci] {
        guest = guest.device(&take(l1, device)?);
    }
    let outcome = boot(l1, &guest.device(&nics[1]).reboots())?;
    let disks = [0, 4].map(|image| l1.image(image).map(|bytes| sha256(&bytes[..HASHED])));
    let once = disks.into_iter().collect::<Result<Vec<_>, _>>()?;
    let mut expected = [once.clone(), once].concat();
    expected.sort();
    assert_eq!(hashes(&outcome), expected, "{}", outcome.details());
    let answers = outcome.reports.iter().filter_map(|report| match report {
        Report::Net { answered, .. } => Some(*answered),
        _ => None,
    });
    assert_eq!(answers.collect::<Vec<_>>(), [20; 6], "{}", outcome.details());
    assert_eq!(counter(&outcome, "/reboots"), 1, "{}", outcome.details());
    // By iommufd each mapping of a BAR is refused, and counts as a call.
    if !l1.machine().has_iommufd() {
        assert!(of_functions(&outcome, "p2p_maps") >= 2 * 5, "{}", outcome.details());
        assert_mapped_once(&outcome);
    }
    Ok(())
}

fn wander(l1: &mut L1) -> Result<(), Error> {
    let edu = take(l1, Device::Edu)?;
    let nic = take(l1, Device::E1000e)?;
    let guest = Guest::new("wander").device_without_reset(&edu).device(&nic);
    // A BAR over RAM, or over another BAR, gets no memory slot.
    let outcome = boot(l1, &guest.logs("cannot place the memory slot of"))?;
    let wrong = outcome.reports.iter().find_map(|report| match report {
        Report::Wander { wrong } => Some(wrong.clone()),
        _ => None,
    });
    assert_eq!(wrong, Some(Vec::new()), "{}", outcome.details());
    Ok(())
}
