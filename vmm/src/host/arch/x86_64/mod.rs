//! The host's kernel on x86-64.

mod calls;
mod iommu;
mod names;
mod vm;

use nix::libc::{self, mcontext_t};
use seccompiler::TargetArch;

pub(crate) use calls::{CONTROL, MAIN, MAIN_REQUESTS, VCPU_REQUESTS};
#[cfg(test)]
pub(crate) use iommu::INTERRUPTS;
pub(crate) use iommu::{REMAPPED, REMAPPING_REMEDY, iommu_remedy};
pub(crate) use names::NAMES;
pub(crate) use vm::{MISSING_REMEDY, NEEDED, NEEDED_LINUX, NEEDED_NAME, create_vm};

/// The architecture of a seccomp filter.
pub(crate) const SECCOMP: TargetArch = TargetArch::x86_64;

/// The second argument of the system call that a signal reports.
pub(crate) fn second_argument(context: &mcontext_t) -> i64 {
    let second = usize::try_from(libc::REG_RSI).ok().and_then(|index| context.gregs.get(index));
    second.copied().unwrap_or_default()
}
