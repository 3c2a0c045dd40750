//! The nested machine: a whole computer with an IOMMU in software emulation (L1), with the VMM in it and
//! its guest (L2) in that.
//!
//! [`Lab`] does the set-up. A [`Machine`] describes an L1; [`L1`] is one that runs, and has its [`agent`
//! protocol](protocol) behind ordinary methods, so a test is ordinary code on the host. [`Pool`] shares
//! booted machines between tests and replaces one that has stopped.

mod cache;
mod command;
mod error;
mod initramfs;
mod kernel;
mod l1;
mod l2;
mod lab;
mod machine;
mod modules;
mod monitor;
mod packages;
mod pool;
mod programs;
pub mod protocol;
mod small_kernel;
mod watchdog;

pub use command::Tool;
pub use error::Error;
pub use kernel::Kernel;
pub use l1::{Echo, L1, Run};
pub use l2::{Guest, Outcome};
pub use lab::{Lab, place, say, sha256};
pub use machine::{Device, IVSHMEM_SIZE, Iommu, Machine, VFS};
pub use monitor::Monitor;
pub use pool::{Pool, Tally};
pub use programs::workspace;

/// The variable that tells the nested tests which lane to run; without it they run all.
pub const LANE: &str = "LAB_LANE";
/// In how many lanes they are. A lane has its own machines, so lanes can run at the same time.
pub const LANES: usize = 2;

/// The variable that asks for the long form of tests that do a thing many times.
pub const LONG: &str = "LAB_LONG";

/// How often a test does what it repeats: `few` times in CI, `many` times by `cargo lab test --long`.
#[must_use]
pub fn times(few: u64, many: u64) -> u64 {
    let is_long = std::env::var_os(LONG).is_some();
    if is_long { many } else { few }
}
