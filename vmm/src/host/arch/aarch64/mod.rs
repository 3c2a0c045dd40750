//! The host's kernel on aarch64.

mod calls;
mod iommu;
mod names;
mod vm;

use nix::libc::mcontext_t;
use seccompiler::TargetArch;

pub(crate) use calls::{CONTROL, MAIN, MAIN_REQUESTS, VCPU_REQUESTS};
#[cfg(test)]
pub(crate) use iommu::INTERRUPTS;
pub(crate) use iommu::{REMAPPED, REMAPPING_REMEDY, iommu_remedy};
pub(crate) use names::NAMES;
pub(crate) use vm::{MISSING_REMEDY, NEEDED, NEEDED_LINUX, NEEDED_NAME, address_bits, create_vm};

/// The architecture of a seccomp filter.
pub(crate) const SECCOMP: TargetArch = TargetArch::aarch64;

/// The second argument of the system call that a signal reports.
pub(crate) fn second_argument(context: &mcontext_t) -> i64 {
    context.regs.get(1).copied().unwrap_or_default() as i64
}
