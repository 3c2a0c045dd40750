//! The program `vmm`.

use std::process::ExitCode;

fn main() -> ExitCode {
    vmm::main()
}
