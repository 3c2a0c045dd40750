//! `vmm check`: whether this host and these devices are ready for a guest, and what mends what is not.

mod device;
mod facts;
mod system;

use serde::Serialize;
use vfio_passthrough::PciAddress;

use super::inventory::Host;
use crate::Memory;

pub use system::Probes;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// A guest can run; something should be known.
    Warning,
    /// No guest can run so.
    Fail,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// What was looked at.
    pub check: &'static str,
    /// Of which device, if of one.
    pub device: Option<String>,
    /// How it came out.
    pub status: Status,
    /// What was found.
    pub what: String,
    /// What mends it: mostly a command.
    pub mend: Option<String>,
}

impl Line {
    fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self { check, device: None, status: Status::Ok, what: what.into(), mend: None }
    }

    fn warning(check: &'static str, what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { status: Status::Warning, mend: Some(mend.into()), ..Self::ok(check, what) }
    }

    fn fail(check: &'static str, what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { status: Status::Fail, ..Self::warning(check, what, mend) }
    }

    fn of(self, address: PciAddress) -> Self {
        Self { device: Some(address.to_string()), ..self }
    }
}

/// All checks, in the order in which a guest's start would come upon them.
pub fn check(host: &Host, probes: &Probes, named: &[PciAddress], memory: Memory) -> Vec<Line> {
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
