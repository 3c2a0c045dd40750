//! The tests on arm64. Most are those of a PC; the lists say which have a meaning there.

use lab::{Device, Kernel, LANES, Machine};

use crate::{Group, conformance, data, full};

/// Hosts with pages of 4 KiB in the first lane, of 16 KiB in the second.
pub fn lanes() -> [Vec<Group>; LANES] {
    [on("aarch64 6.12", Kernel::Arm612), on("aarch64 6.12-16k", Kernel::Arm612Of16K)]
}

fn on(name: &'static str, kernel: Kernel) -> Vec<Group> {
    let tests = [data::TESTS, conformance::TESTS].concat();
    vec![(name, full(kernel), tests)]
}
