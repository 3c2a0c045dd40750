//! The commands that prepare a host for a guest with devices: `vmm check`, `devices`, `bind`, `unbind`.
//!
//! [`inventory`] and [`holders`] read what the host is; [`plan`] decides which writes give a device away or
//! take it back; [`bind`] carries them out; [`check`] judges. All read below one root, so that tests run on
//! trees of their own.

pub mod bind;
pub mod check;
pub mod error;
pub mod holders;
pub mod inventory;
pub mod names;
pub mod plan;
pub mod table;
pub mod tree;

use std::path::Path;
use std::process::ExitCode;

use clap::Subcommand;
use serde::Serialize;
use vfio_passthrough::PciAddress;
use vfio_passthrough::address::ParsePciAddressError;

use crate::{Memory, vfio};
use bind::{Moved, ThisKernel};
use check::{Probes, Status};
pub use error::Error;
use inventory::{Host, attribute};
use names::Names;
use tree::Tree;

/// A command that prepares.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Say whether this host, and devices of it, are ready for a guest, and what mends what is not
    ///
    /// Exit status: 0 if nothing fails, 1 otherwise.
    Check {
        /// PCI devices: their addresses (0000:01:00.0) or sysfs paths
        #[arg(value_name = "DEVICE", value_parser = address)]
        devices: Vec<PciAddress>,
        /// RAM of the guest to come, as it would be given
        #[arg(long, value_name = "SIZE[,OPTION]...", default_value = "512M")]
        memory: Memory,
        /// Print an array of {check, device, status, what, mend}
        #[arg(long)]
        json: bool,
    },
    /// List PCI devices: group, driver, whether they can be assigned or why not
    Devices {
        /// Print an array
        #[arg(long)]
        json: bool,
    },
    /// Give devices to vfio-pci; what is there already stays (as root)
    ///
    /// All that are named, or none if one fails. The host loses them; 'vmm unbind' brings them back, and so
    /// does a reboot.
    Bind {
        /// PCI devices: their addresses (0000:01:00.0) or sysfs paths
        #[arg(value_name = "DEVICE", value_parser = address, required = true)]
        devices: Vec<PciAddress>,
        /// Even one that holds a mounted file system, swap or the default route
        #[arg(long)]
        force: bool,
    },
    /// Give devices back to their drivers; what is there already stays (as root)
    Unbind {
        /// PCI devices: their addresses (0000:01:00.0) or sysfs paths
        #[arg(value_name = "DEVICE", value_parser = address, required = true)]
        devices: Vec<PciAddress>,
        /// Even one in use: waits until its user lets it go
        #[arg(long)]
        force: bool,
    },
}

fn address(text: &str) -> Result<PciAddress, ParsePciAddressError> {
    vfio::address(Path::new(text))
}

/// What a command says, and its exit status.
#[derive(Debug, Default)]
pub struct Report {
    /// For the standard output.
    pub out: String,
    /// For the standard error, each a warning.
    pub warnings: Vec<String>,
    /// Whether a check failed.
    pub failed: bool,
}

impl Report {
    /// The process's exit status.
    pub fn status(&self) -> ExitCode {
        match self.failed {
            true => ExitCode::FAILURE,
            false => ExitCode::SUCCESS,
        }
    }
}

/// Does what a command says, on this host.
pub fn run(command: &Command) -> Result<Report, Error> {
    let host = Host::new(Tree::at("/"));
    match command {
        Command::Check { devices, memory, json } => {
            let lines = check::check(&host, &Probes::of_this_host(*memory), devices, *memory);
            Ok(Report {
                out: told(&lines, *json, table::checks)?,
                failed: lines.iter().any(|line| line.status == Status::Fail),
                ..Report::default()
            })
        }
        Command::Devices { json } => {
            let names = Names::of(&host.tree);
            let devices = host.devices();
            let listed: Vec<_> = devices.iter().map(|d| host.listed(d, &names)).collect();
            Ok(Report { out: told(&listed, *json, table::devices)?, ..Report::default() })
        }
        Command::Bind { devices, force } => {
            let moved = bind::bind(&host, &mut ThisKernel, devices, *force)?;
            Ok(done(&host, &moved, bind::not_viable_yet(&host, &moved)))
        }
        Command::Unbind { devices, force } => {
            let moved = bind::unbind(&host, &mut ThisKernel, devices, *force)?;
            Ok(done(&host, &moved, driverless(&moved)))
        }
    }
}

fn told<T: Serialize>(
    rows: &[T],
    json: bool,
    table: impl Fn(&[T]) -> String,
) -> Result<String, Error> {
    match json {
        true => Ok(serde_json::to_string_pretty(rows)? + "\n"),
        false => Ok(table(rows)),
    }
}

fn done(host: &Host, moved: &[Moved], warnings: Vec<String>) -> Report {
    Report { out: table::moved(host, moved), warnings, failed: false }
}

/// The kernel finds a driver among those that are loaded.
fn driverless(moved: &[Moved]) -> Vec<String> {
    let warning = |moved: &Moved| {
        let alias = attribute(moved.address, "modalias");
        format!(
            "{}: no loaded driver takes it; load its own with: modprobe $(cat /{alias})",
            moved.address
        )
    };
    let without = moved.iter().filter(|moved| moved.after.driver.is_none());
    without.map(warning).collect()
}

#[cfg(test)]
pub(crate) mod fixture;
