//! Functions that several tests use.

use guest::Report;
use lab::protocol::Ending;
use lab::{Device, Error, Guest, L1, Monitor, Outcome};

/// The number of a user without capabilities.
pub const NOBODY: u32 = 65534;

/// The driver for devices that are assigned.
pub const VFIO: Option<&str> = Some("vfio-pci");

/// Binds device number `index` to vfio-pci; returns its address.
pub fn assigned(l1: &mut L1, index: usize) -> Result<String, Error> {
    let address = l1.machine().address(index);
    l1.bind(&address, VFIO)?;
    Ok(address)
}

/// Binds the first device of a kind to vfio-pci; returns its address.
pub fn take(l1: &mut L1, device: Device) -> Result<String, Error> {
    let address = l1.machine().address_of(device);
    l1.bind(&address, VFIO)?;
    Ok(address)
}

/// Boots a guest with the first NVMe, as [`boot`] does.
pub fn boot_with_nvme(l1: &mut L1, steps: &str) -> Result<Outcome, Error> {
    let device = assigned(l1, 0)?;
    boot(l1, &Guest::new(steps).device(&device))
}

/// Boots a guest, all of whose steps must succeed.
pub fn boot(l1: &mut L1, guest: &Guest) -> Result<Outcome, Error> {
    boot_along(l1, guest, |_, _| Ok(()))
}

/// The same. Each time the guest prints, calls `along` with its whole output so far.
pub fn boot_along(
    l1: &mut L1,
    guest: &Guest,
    along: impl FnMut(&mut Monitor, &str) -> Result<(), Error>,
) -> Result<Outcome, Error> {
    let outcome = guest.boot_along(l1, along)?;
    assert!(outcome.is_success(), "{}", outcome.details());
    let failed = outcome.reports.iter().find(|report| matches!(report, Report::Error { .. }));
    assert_eq!(failed, None, "a step of the guest failed\n{}", outcome.details());
    Ok(outcome)
}

/// Asserts that `text` contains all of `parts`.
pub fn assert_parts<S: AsRef<str>>(text: &str, parts: &[S]) {
    for part in parts.iter().map(AsRef::as_ref) {
        assert!(text.contains(part), "no {part:?} in:\n{text}");
    }
}

/// Asserts that the VMM refused to boot the guest with an error that contains all of `parts`.
pub fn assert_refused(outcome: &Outcome, parts: &[&str]) {
    let details = outcome.details();
    assert_eq!(outcome.finished.ending, Ending::Status(1), "{details}");
    for part in parts {
        assert!(outcome.stderr.contains(part), "no {part:?}\n{details}");
    }
}

/// The VMM's counter at `path`, which must exist.
pub fn counter(outcome: &Outcome, path: &str) -> u64 {
    outcome.counter(path).unwrap_or_else(|| panic!("no counter {path}\n{}", outcome.details()))
}

/// How often memory was mapped for DMA, by type1 or iommufd.
pub fn map_calls(outcome: &Outcome) -> u64 {
    calls(outcome, &["map_dma", "ioas_map", "ioas_map_file"])
}

/// How often the guest's RAM was mapped for DMA and unmapped: all calls less those for BARs.
pub fn ram_calls(outcome: &Outcome) -> [u64; 2] {
    let unmaps = calls(outcome, &["unmap_dma", "ioas_unmap"]);
    [
        map_calls(outcome) - of_functions(outcome, "p2p_maps"),
        unmaps - of_functions(outcome, "p2p_unmaps"),
    ]
}

fn calls(outcome: &Outcome, names: &[&str]) -> u64 {
    names.iter().map(|name| counter(outcome, &format!("/vfio_ioctls/{name}"))).sum()
}

/// The sum of a counter over all assigned functions.
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

/// The number of DMA faults that the IOMMU has reported to L1's kernel.
pub fn faults(l1: &mut L1) -> Result<usize, Error> {
    let log = l1.kernel_log()?;
    let is_fault = |line: &&str| {
        line.contains("DMAR") && line.contains("fault addr")
            || line.contains("arm-smmu-v3") && line.contains("event 0x")
    };
    Ok(log.lines().filter(is_fault).count())
}
