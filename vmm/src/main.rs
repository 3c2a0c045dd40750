//! The command line.

use std::process::ExitCode;

use clap::Parser;
use env_logger::Env;
use vmm::{Args, Outcome};

fn main() -> ExitCode {
    env_logger::Builder::from_env(Env::default().default_filter_or("warn"))
        .format_timestamp(None)
        .init();
    match vmm::run(&Args::parse()) {
        Ok(outcome) => status(&outcome),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
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
