//! The lab: tests in a nested machine, without hardware.
//!
//! - L1 is a PC or an arm64 machine with an IOMMU, which QEMU emulates. It runs Linux, with the lab's
//!   agent as its init. [`Arch`] has what differs.
//! - L2 is a Linux guest that the VMM boots in L1.
//! - A lane is a part of the nested tests. Lanes run at the same time, each with its own L1.
//!
//! [`Lab`] does the set-up. A [`Machine`] describes an L1, and an [`L1`] is a running one. Its
//! methods talk to the agent (see [`protocol`]), so a test is ordinary code on the host. A [`Pool`]
//! shares booted machines between tests, and replaces a machine that has stopped.

mod arch;
mod cache;
mod command;
mod debian;
mod dumps;
mod error;
mod initramfs;
mod kernel;
mod l1;
mod l2;
mod lab;
mod log;
mod machine;
mod modules;
mod monitor;
mod packages;
mod pool;
mod programs;
pub mod protocol;
mod selftest;
mod small_kernel;
mod suite;
pub mod tap;
mod watchdog;

pub use arch::{ARCH, Arch};
pub use command::Tool;
pub use debian::Debian;
pub use error::Error;
pub use kernel::Kernel;
pub use l1::{Echo, L1, Run};
pub use l2::{Guest, Outcome};
pub use lab::{Lab, place, say, sha256};
pub use machine::models::{
    APART, DISKS, I8255X, Model, NICS, OTHERS, OWN_BARS, SCREENS, SERIAL, SOUND,
};
pub use machine::{Device, IVSHMEM_SIZE, Iommu, Machine, VFS, WIDE_VECTORS};
pub use monitor::Monitor;
pub use pool::{Pool, Tally};
pub use programs::{on_model, workspace};
pub use selftest::{PROGRAMS as SELFTESTS, VFIO_PROGRAMS as VFIO_SELFTESTS};

/// The environment variable with the number of the lane to run; without it, the nested tests run
/// all lanes.
pub const LANE: &str = "LAB_LANE";
/// The number of lanes.
pub const LANES: usize = 2;

/// The environment variable that, if set, selects the long form of tests that repeat an action.
pub const LONG: &str = "LAB_LONG";

/// The number of repetitions of a test: `few` in CI, `many` with `cargo lab test --long`.
#[must_use]
pub fn times(few: u64, many: u64) -> u64 {
    let is_long = std::env::var_os(LONG).is_some();
    if is_long { many } else { few }
}
