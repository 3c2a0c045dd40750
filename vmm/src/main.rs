//! The command line.

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use env_logger::Env;
use vmm::{Command, CommandLine, Outcome, control, prepare};

fn main() -> ExitCode {
    env_logger::Builder::from_env(Env::default().default_filter_or("warn"))
        .format_timestamp(None)
        .init();
    let line = CommandLine::parse();
    match (&line.command, &line.guest) {
        (Some(Command::Prepare(command)), _) => ended(prepare(command)),
        (Some(Command::Stats { socket, json }), _) => ended(control::stats(socket, *json).map(said)),
        (None, Some(args)) => ended(vmm::run(args).map(|outcome| status(&outcome))),
        // clap asks for --kernel where there is no command.
        (None, None) => ExitCode::FAILURE,
    }
}

fn ended<E: Display>(result: Result<ExitCode, E>) -> ExitCode {
    result.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}

fn prepare(command: &prepare::Command) -> Result<ExitCode, prepare::Error> {
    let report = prepare::run(command)?;
    said(report.out.clone());
    let warnings = report.warnings.iter();
    warnings.for_each(|warning| eprintln!("warning: {warning}"));
    Ok(report.status())
}

fn said(text: String) -> ExitCode {
    // Whoever reads it may have seen enough: `vmm devices | head`.
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

/// A shell's convention for signals; 0 for all that the guest or the user asked for.
fn status(outcome: &Outcome) -> ExitCode {
    match outcome {
        Outcome::Signal(number) => {
            u8::try_from(*number).map_or(ExitCode::FAILURE, |n| n.saturating_add(128).into())
        }
        _ => ExitCode::SUCCESS,
    }
}
