//! The command line.

mod logs;

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use log::Level;
use logs::Style;
use vmm::{Command, CommandLine, Outcome, control, prepare};

fn main() -> ExitCode {
    let style = Style::of_stderr();
    style.set_up_log();
    let line = CommandLine::parse();
    match (&line.command, &line.guest) {
        (Some(Command::Prepare(command)), _) => ended(style, prepare(style, command)),
        (Some(Command::Stats { socket, json }), _) => {
            ended(style, control::stats(socket, *json).map(said))
        }
        (None, Some(args)) => ended(style, vmm::run(args).map(|outcome| status(&outcome))),
        // clap asks for --kernel where there is no command.
        (None, None) => ExitCode::FAILURE,
    }
}

fn ended<E: Display>(style: Style, result: Result<ExitCode, E>) -> ExitCode {
    result.unwrap_or_else(|error| {
        style.say(Level::Error, &format!("error: {error}"));
        ExitCode::FAILURE
    })
}

fn prepare(style: Style, command: &prepare::Command) -> Result<ExitCode, prepare::Error> {
    let report = prepare::run(command)?;
    said(report.out.clone());
    let warnings = report.warnings.iter();
    warnings.for_each(|warning| style.say(Level::Warn, &format!("warning: {warning}")));
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
