//! DMA from one assigned device to another.

use guest::Report;
use lab::{Device, Error, Guest, L1, Outcome};

use crate::Test;
use crate::support::{boot, counter, faults, take};

/// On a machine with devices of each kind.
pub const TESTS: &[Test] = &[
    ("an edu reaches the memory of an ivshmem where its BAR is", reached),
    ("an edu does not reach it with p2p=off", kept_off),
];

/// What the edu did not reach, and what it should not have.
fn found(outcome: &Outcome) -> (usize, Vec<String>) {
    let found = outcome.reports.iter().find_map(|report| match report {
        Report::P2p { unreached, harmed } => Some((unreached.clone(), harmed.clone())),
        _ => None,
    });
    let (unreached, harmed) = found.unwrap_or_else(|| panic!("no report\n{}", outcome.account()));
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

/// Astray it faults, and nothing is harmed.
fn reached(l1: &mut L1) -> Result<(), Error> {
    let before = faults(l1)?;
    let (guest, memory) = guest(l1, "")?;
    let outcome = boot(l1, &guest)?;
    assert_eq!(found(&outcome), (0, vec![]), "{}", outcome.account());
    assert!(faults(l1)? > before, "{}", outcome.account());
    let calls =
        ["maps", "unmaps"].map(|call| counter(&outcome, &format!("/devices/{memory}/p2p_{call}")));
    // On, away, back, and on again; its registers are less than a page.
    assert_eq!(calls, [4, 4], "{}", outcome.account());
    assert!(!outcome.stderr.contains("DMA of other devices"), "{}", outcome.account());
    Ok(())
}

fn kept_off(l1: &mut L1) -> Result<(), Error> {
    let before = faults(l1)?;
    let (guest, memory) = guest(l1, ",p2p=off")?;
    let outcome = boot(l1, &guest)?;
    assert_eq!(found(&outcome), (4, vec![]), "{}", outcome.account());
    assert!(faults(l1)? > before, "{}", outcome.account());
    assert_eq!(counter(&outcome, &format!("/devices/{memory}/p2p_maps")), 0);
    Ok(())
}
