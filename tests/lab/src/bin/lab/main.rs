//! `cargo lab`: runs the project in a nested machine.

mod bench;
mod boot;
mod suite;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lab::{Error, Kernel, Lab, say};

/// Runs the project in an emulated machine that has an IOMMU and KVM. It needs no special hardware.
/// As root, it installs missing packages. It fetches and builds kernels once, and keeps them in
/// ~/.cache/vfio-passthrough-lab.
#[derive(Parser)]
#[command(name = "cargo lab")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boot the emulated machine (L1), and in it `vmm` with a Linux guest (L2) that has an assigned
    /// NVMe.
    Boot(boot::Arguments),
    /// Run all tests of the project, from unit tests to tests in the emulated machine.
    Test(suite::Arguments),
    /// Fetch or build a kernel, if it is not in the cache.
    Kernel(Wanted),
    /// Compare `vmm` with QEMU in one emulated machine.
    Bench(bench::Arguments),
}

#[derive(clap::Args)]
struct Wanted {
    /// The kernel.
    #[arg(value_enum, default_value_t = Kernel::Small)]
    kernel: Kernel,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Boot(arguments) => boot::boot(&arguments),
        Command::Test(arguments) => suite::run(&arguments),
        Command::Kernel(wanted) => kernel(wanted.kernel),
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

fn kernel(kernel: Kernel) -> Result<bool, Error> {
    let image = Lab::without_programs()?.kernel(kernel)?;
    say(&format!("{} is at {}", kernel.name(), image.display()));
    Ok(true)
}
