//! The commands that prepare a host: `vmm check`, `devices`, `bind`, `unbind`.
//!
//! [`inventory`] and [`holders`] read the host's state. [`plan`] decides which writes bind a device
//! to vfio-pci or return it. [`mod@bind`] carries the writes out. [`mod@check`] reports problems.
//! All modules read below one root folder, so that tests can use fake trees.

pub(crate) mod bind;
pub(crate) mod check;
pub(crate) mod error;
pub(crate) mod holders;
pub(crate) mod inventory;
pub(crate) mod names;
pub(crate) mod plan;
pub(crate) mod presence;
pub(crate) mod table;
pub(crate) mod tree;

use std::process::ExitCode;

use serde::Serialize;
use vfio_passthrough::PciAddress;

use crate::config::Memory;
use bind::{Moved, ThisKernel};
use check::{Probes, Status};
pub(crate) use error::Error;
use inventory::{Inventory, attribute};
use names::Names;
use tree::Tree;

/// The output of a command, and its exit status.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// The text for standard output.
    pub(crate) out: String,
    /// Warnings for standard error.
    pub(crate) warnings: Vec<String>,
    /// Whether a check failed.
    pub(crate) failed: bool,
}

impl Report {
    /// The exit status of the process.
    pub(crate) fn status(&self) -> ExitCode {
        match self.failed {
            true => ExitCode::FAILURE,
            false => ExitCode::SUCCESS,
        }
    }
}

/// `vmm check`: checks whether this host and `devices` are ready for a guest.
pub(crate) fn check(devices: &[PciAddress], memory: Memory, json: bool) -> Result<Report, Error> {
    let lines = check::check(&this_host(), &Probes::of_this_host(memory), devices, memory);
    Ok(Report {
        out: formatted(&lines, json, table::checks)?,
        failed: lines.iter().any(|line| line.status == Status::Fail),
        ..Report::default()
    })
}

/// `vmm devices`: lists the host's PCI devices.
pub(crate) fn devices(json: bool) -> Result<Report, Error> {
    let inventory = this_host();
    let names = Names::of(&inventory.tree);
    let devices = inventory.devices();
    let listed: Vec<_> = devices.iter().map(|d| inventory.listed(d, &names)).collect();
    Ok(Report { out: formatted(&listed, json, table::devices)?, ..Report::default() })
}

/// `vmm bind`: binds `devices` to vfio-pci.
pub(crate) fn bind(devices: &[PciAddress], force: bool) -> Result<Report, Error> {
    let inventory = this_host();
    let moved = bind::bind(&inventory, &mut ThisKernel, devices, force)?;
    Ok(done(&inventory, &moved, bind::not_viable_yet(&inventory, &moved)))
}

/// `vmm unbind`: returns `devices` to their drivers.
pub(crate) fn unbind(devices: &[PciAddress], force: bool) -> Result<Report, Error> {
    let inventory = this_host();
    let moved = bind::unbind(&inventory, &mut ThisKernel, devices, force)?;
    Ok(done(&inventory, &moved, driverless(&moved)))
}

fn this_host() -> Inventory {
    Inventory::new(Tree::at("/"))
}

fn formatted<T: Serialize>(
    rows: &[T],
    json: bool,
    table: impl Fn(&[T]) -> String,
) -> Result<String, Error> {
    match json {
        true => Ok(serde_json::to_string_pretty(rows)? + "\n"),
        false => Ok(table(rows)),
    }
}

fn done(inventory: &Inventory, moved: &[Moved], warnings: Vec<String>) -> Report {
    Report { out: table::moved(inventory, moved), warnings, failed: false }
}

/// Warnings about devices without a driver: the kernel only tries loaded drivers.
fn driverless(moved: &[Moved]) -> Vec<String> {
    let warning = |moved: &Moved| {
        let alias = attribute(moved.address, "modalias");
        format!(
            "{}: no loaded driver supports the device; load its driver with: modprobe $(cat /{alias})",
            moved.address
        )
    };
    let without = moved.iter().filter(|moved| moved.after.driver.is_none());
    without.map(warning).collect()
}

#[cfg(test)]
pub(crate) mod fixture;
