//! What differs between architectures: CPUs, boot data, and the places of the fixed devices.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub use aarch64::Kernel;
#[cfg(target_arch = "aarch64")]
pub(crate) use aarch64::*;
#[cfg(target_arch = "x86_64")]
pub use x86_64::Kernel;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::*;
