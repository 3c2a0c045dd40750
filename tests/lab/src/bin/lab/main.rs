//! `cargo lab`: the project in its nested machine.

mod bench;
mod boot;
mod suite;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lab::{Error, Kernel, Lab, say};

/// Runs the project in an emulated machine that has what it needs: an IOMMU, and KVM. No hardware is asked
/// for; whatever is missing is installed, fetched or built, and kept in ~/.cache/vfio-passthrough-lab.
#[derive(Parser)]
#[command(name = "cargo lab")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boots the emulated machine (L1), and in it `vmm` with a Linux guest (L2) that has an NVMe assigned.
    Boot(boot::Arguments),
    /// Runs every test of the project, from unit tests to those in the emulated machine.
    Test(suite::Arguments),
    /// Builds the small kernel, unless that has been done.
    Kernel,
    /// Compares `vmm` with QEMU in one emulated machine.
    Bench(bench::Arguments),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Boot(arguments) => boot::boot(&arguments),
        Command::Test(arguments) => suite::run(&arguments),
        Command::Kernel => kernel(),
        Command::Bench(arguments) => bench::bench(&arguments),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn kernel() -> Result<bool, Error> {
    let image = Lab::without_programs()?.kernel(Kernel::Small)?;
    say(&format!("the small kernel is {}", image.display()));
    Ok(true)
}
