//! Peer-to-peer DMA between assigned devices.

use guest::Report;
use lab::{Device, Error, Guest, L1, Outcome};

use crate::Test;
use crate::support::{boot, counter, faults, take};

/// On a machine with devices of each kind, and with type1 or a kernel that exports BARs.
pub const TESTS: &[Test] = &[
    ("DMA of an edu reaches the BAR of an ivshmem", reached),
    ("DMA of an edu does not reach the BAR of an ivshmem with p2p=off", kept_off),
    ("DMA of an edu reaches the BAR of an NVMe in D0 only, and again after a reset", follows_power),
];

/// The number of accesses that did not reach the BAR, and the accesses that should not have.
fn found(outcome: &Outcome) -> (usize, Vec<String>) {
    let found = outcome.reports.iter().find_map(|report| match report {
        Report::P2p { unreached, harmed } => Some((unreached.clone(), harmed.clone())),
        _ => None,
    });
    let (unreached, harmed) = found.unwrap_or_else(|| panic!("no report\n{}", outcome.details()));
    (unreached.len(), harmed)
}

fn guest(l1: &mut L1, option: &str) -> Result<(Guest, String), Error> {
    let edu = take(l1, Device::Edu)?;
    let memory = take(l1, Device::Ivshmem)?;
    let guest = Guest::new("p2p")
        .device_without_reset(&edu)
        .device_without_reset(&format!("{memory}{option}"));
    Ok((guest, memory))
}

/// The IOMMU stops DMA at the BAR's old address and while decoding is off.
fn reached(l1: &mut L1) -> Result<(), Error> {
    let before = faults(l1)?;
    let (guest, memory) = guest(l1, "")?;
    let outcome = boot(l1, &guest)?;
    assert_eq!(found(&outcome), (0, vec![]), "{}", outcome.details());
    assert!(faults(l1)? > before, "{}", outcome.details());
    let calls =
        ["maps", "unmaps"].map(|call| counter(&outcome, &format!("/devices/{memory}/p2p_{call}")));
    // Decoding on, moved away, moved back, on again. BAR0 does not move, and is smaller than a page:
    // only type1 maps the page around it.
    let expected = if l1.machine().has_iommufd() { 4 } else { 6 };
    assert_eq!(calls, [expected; 2], "{}", outcome.details());
    assert!(!outcome.stderr.contains("DMA of other devices"), "{}", outcome.details());
    assert_mapped_by_file(l1, &outcome, 4);
    Ok(())
}

/// By iommufd, each mapping of a BAR has a dma-buf of its own.
fn assert_mapped_by_file(l1: &L1, outcome: &Outcome, least: u64) {
    let exported = counter(outcome, "/vfio_ioctls/dma_buf");
    match l1.machine().has_iommufd() {
        true => assert!(exported >= least, "{}", outcome.details()),
        false => assert_eq!(exported, 0, "{}", outcome.details()),
    }
}

/// The IOMMU stops DMA in D3hot and after a reset, until the BAR is programmed again.
fn follows_power(l1: &mut L1) -> Result<(), Error> {
    let before = faults(l1)?;
    let edu = take(l1, Device::Edu)?;
    let nvme = take(l1, Device::Nvme)?;
    let guest = Guest::new("p2p-power").device_without_reset(&edu).device(&nvme);
    let outcome = boot(l1, &guest)?;
    assert_eq!(found(&outcome), (0, vec![]), "{}", outcome.details());
    assert!(faults(l1)? > before, "{}", outcome.details());
    assert!(!outcome.stderr.contains("DMA of other devices"), "{}", outcome.details());
    assert_mapped_by_file(l1, &outcome, 3);
    Ok(())
}

fn kept_off(l1: &mut L1) -> Result<(), Error> {
    let before = faults(l1)?;
    let (guest, memory) = guest(l1, ",p2p=off")?;
    let outcome = boot(l1, &guest)?;
    assert_eq!(found(&outcome), (4, vec![]), "{}", outcome.details());
    assert!(faults(l1)? > before, "{}", outcome.details());
    assert_eq!(counter(&outcome, &format!("/devices/{memory}/p2p_maps")), 0);
    Ok(())
}
