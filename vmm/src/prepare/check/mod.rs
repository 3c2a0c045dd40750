//! `vmm check`: whether this host and these devices are ready for a guest, and what mends what is
//! not.

mod device;
mod facts;
mod line;
mod system;

use vfio_passthrough::PciAddress;

use super::inventory::Inventory;
use crate::config::Memory;

pub(crate) use line::{Line, Status};
pub(crate) use system::Probes;

/// All checks, in the order in which a guest's start would come upon them.
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
    lines
}

#[cfg(test)]
mod tests;
