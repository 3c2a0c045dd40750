//! `vmm check`: checks whether this host and its devices are ready for a guest, and names remedies.

mod capacity;
mod device;
mod driver;
mod facts;
mod limits;
mod line;
mod system;

use vfio_passthrough::PciAddress;

use super::inventory::Inventory;
use crate::config::Memory;

pub(crate) use line::{Line, Status};
pub(crate) use system::Probes;

/// Runs all checks, in the order in which the start of a guest would fail.
pub(crate) fn check(
    host: &Inventory,
    probes: &Probes,
    named: &[PciAddress],
    memory: Memory,
) -> Vec<Line> {
    let mut lines = system::lines(host, probes);
    let mut functions = Vec::new();
    for address in named {
        let (of_device, function) = device::lines(host, *address);
        lines.extend(of_device.into_iter().map(|line| line.of(*address)));
        functions.extend(function);
    }
    lines.extend(system::together(host, probes, &functions, memory));
    lines.extend(capacity::lines(host, &functions));
    lines
}

#[cfg(test)]
mod tests;
