//! What differs between architectures.

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod pin;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub(super) use aarch64::pins;
#[cfg(test)]
pub(super) use pin::pin;
#[cfg(target_arch = "x86_64")]
pub(super) use x86_64::pins;
