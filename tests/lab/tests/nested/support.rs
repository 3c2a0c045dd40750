//! What several tests need.

use guest::Report;
use lab::protocol::Ending;
use lab::{Device, Error, Guest, L1, Monitor, Outcome};

/// The driver that hands devices to userspace.
pub const VFIO: Option<&str> = Some("vfio-pci");

/// The address of NVMe number `index`, which is bound to vfio-pci now.
pub fn assigned(l1: &mut L1, index: usize) -> Result<String, Error> {
    let address = l1.machine().address(index);
    l1.bind(&address, VFIO)?;
    Ok(address)
}

/// The address of the first device of a kind, which is bound to vfio-pci now.
pub fn take(l1: &mut L1, device: Device) -> Result<String, Error> {
    let address = l1.machine().address_of(device);
    l1.bind(&address, VFIO)?;
    Ok(address)
}

/// Boots a guest with the first NVMe.
pub fn boot_with_nvme(l1: &mut L1, steps: &str) -> Result<Outcome, Error> {
    let device = assigned(l1, 0)?;
    boot(l1, &Guest::new(steps).device(&device))
}

/// Boots a guest that must get through.
pub fn boot(l1: &mut L1, guest: &Guest) -> Result<Outcome, Error> {
    boot_along(l1, guest, |_, _| Ok(()))
}

/// The same; `along` may do something to L1 whenever the guest has printed something.
pub fn boot_along(
    l1: &mut L1,
    guest: &Guest,
    along: impl FnMut(&mut Monitor, &str) -> Result<(), Error>,
) -> Result<Outcome, Error> {
    let outcome = guest.boot_along(l1, along)?;
    assert!(outcome.is_success(), "{}", outcome.account());
    let failed = outcome.reports.iter().find(|report| matches!(report, Report::Error { .. }));
    assert_eq!(failed, None, "a step of the guest's failed\n{}", outcome.account());
    Ok(outcome)
}

/// The VMM refused to boot the guest, in these words among others.
pub fn assert_refused(outcome: &Outcome, parts: &[&str]) {
    let account = outcome.account();
    assert_eq!(outcome.finished.ending, Ending::Status(1), "{account}");
    for part in parts {
        assert!(outcome.stderr.contains(part), "no {part:?}\n{account}");
    }
}

/// The VMM's counter at `path`, which must be there.
pub fn counter(outcome: &Outcome, path: &str) -> u64 {
    outcome.counter(path).unwrap_or_else(|| panic!("no counter {path}\n{}", outcome.account()))
}

/// How often the guest's RAM was mapped for DMA, and unmapped: what is counted, less the BARs.
pub fn ram_calls(outcome: &Outcome) -> [u64; 2] {
    [("map_dma", "p2p_maps"), ("unmap_dma", "p2p_unmaps")].map(|(all, bars)| {
        counter(outcome, &format!("/vfio_ioctls/{all}")) - of_functions(outcome, bars)
    })
}

/// A counter of all functions.
pub fn of_functions(outcome: &Outcome, name: &str) -> u64 {
    let functions = outcome.stats["devices"].as_object();
    let counts = functions
        .into_iter()
        .flat_map(|functions| functions.values())
        .filter_map(|function| function[name].as_u64());
    counts.sum()
}

/// The hashes that the guest reported, in order of their values.
pub fn hashes(outcome: &Outcome) -> Vec<String> {
    let hash = |report: &Report| match report {
        Report::Hash { sha256, .. } => Some(sha256.clone()),
        _ => None,
    };
    let mut hashes: Vec<String> = outcome.reports.iter().filter_map(hash).collect();
    hashes.sort();
    hashes
}

/// How often the IOMMU has told of DMA that it stopped.
pub fn faults(l1: &mut L1) -> Result<usize, Error> {
    let log = l1.kernel_log()?;
    let tells = |line: &&str| line.contains("DMAR") && line.contains("fault addr");
    Ok(log.lines().filter(tells).count())
}
