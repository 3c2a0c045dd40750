//! A small KVM VMM that boots a Linux guest with PCI devices of the host assigned to it.
//!
//! [`main`] is the program. Each module imports only from those before it: `config` (the request as
//! plain data), `host` (resources of the host), `guest` (the virtual machine), `passthrough` (the
//! assigned devices), `run` (everything while the guest runs). `cli` parses the command line into
//! `config`. `prepare` holds the commands that inspect the host and bind devices to vfio-pci.
//!
//! The main thread waits for events; one thread per vCPU runs the guest. Every part undoes its
//! effects when it is dropped.
//!
//! The public items serve the tests and tools of this repository.

#![deny(unreachable_pub)]
#![cfg_attr(test, allow(clippy::arithmetic_side_effects, reason = "a failing test panics"))]

mod cli;
mod config;
mod counters;
mod error;
mod guest;
mod host;
mod passthrough;
mod prepare;
mod run;

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use log::Level;

pub use cli::CommandLine;
pub use config::{Seccomp, Thread};
pub use error::Error;
pub use guest::arch::Kernel;
pub use guest::boot::{Boot, DEFAULT_CMDLINE, Platform};
pub use guest::memory::Ram;
pub use host::files::Opened;
pub use host::seccomp::{
    prepare as prepare_seccomp, restrict as restrict_thread, rows as seccomp_rows,
};
pub use run::control::read_request;

use cli::{Command, PrepareCommand};
use host::logs::Style;
use run::Outcome;

/// Runs the program and returns its exit status.
pub fn main() -> ExitCode {
    let style = Style::of_stderr();
    style.set_up_log();
    let line = CommandLine::parse();
    match (line.command, line.guest) {
        (Some(Command::Prepare(command)), _) => exit_code(style, prepare(style, &command)),
        (Some(Command::Add { socket, vfio, iommu }), _) => {
            exit_code(style, run::control::add(&socket, &vfio, iommu).map(print))
        }
        (Some(Command::Remove { socket, device, force, timeout }), _) => {
            let timeout = Duration::from_secs(timeout);
            exit_code(style, run::control::remove(&socket, device, force, timeout).map(print))
        }
        (Some(Command::Stats { socket, json }), _) => {
            exit_code(style, run::control::stats(&socket, json).map(print))
        }
        (None, Some(args)) => {
            exit_code(style, run::run(&args.into()).map(|outcome| status(&outcome)))
        }
        // clap requires --kernel when there is no command.
        (None, None) => ExitCode::FAILURE,
    }
}

fn exit_code<E: Display>(style: Style, result: Result<ExitCode, E>) -> ExitCode {
    result.unwrap_or_else(|error| {
        style.print(Level::Error, &format!("error: {error}"));
        ExitCode::FAILURE
    })
}

fn prepare(style: Style, command: &PrepareCommand) -> Result<ExitCode, prepare::Error> {
    let report = match command {
        PrepareCommand::Check { devices, memory, json } => prepare::check(devices, *memory, *json),
        PrepareCommand::Devices { json } => prepare::devices(*json),
        PrepareCommand::Bind { devices, force } => prepare::bind(devices, *force),
        PrepareCommand::Unbind { devices, force } => prepare::unbind(devices, *force),
    }?;
    print(report.out.clone());
    let warnings = report.warnings.iter();
    warnings.for_each(|warning| style.print(Level::Warn, &format!("warning: {warning}")));
    Ok(report.status())
}

fn print(text: String) -> ExitCode {
    // Ignore an error: the reader may have closed its end, as in `vmm devices | head`.
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

/// 128 + N for a signal, as shells report it; 0 for every end that the guest or the user requested.
fn status(outcome: &Outcome) -> ExitCode {
    match outcome {
        Outcome::Signal(number) => {
            u8::try_from(*number).map_or(ExitCode::FAILURE, |n| n.saturating_add(128).into())
        }
        _ => ExitCode::SUCCESS,
    }
}

/// Compiles the README's code with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
