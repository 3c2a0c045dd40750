//! Fuzzing: whatever a guest does, and whatever a device, sysfs or a kernel image says, nothing panics and what must
//! hold does.
//!
//! `tests/fuzz/run TARGET [SECONDS]` runs a target with libFuzzer, guided by coverage, on stable Rust; what reaches new
//! code is then in `target/fuzzing/found/TARGET`, and what is worth keeping is copied to `corpus/TARGET` by hand.
//! `cargo test -p fuzz` runs the corpus. A target is a function of bytes that panics where something is wrong.
//!
//! The oracle of the targets with a function in them ([`oracle`]): memory slots overlap neither RAM nor each other; no
//! page of the MSI-X table or of the pending bits is mapped; what is bound in the host is what the guest asks for, so that
//! asking again changes nothing; and when the function is shut down nothing is held.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a target that fails panics"
)]

mod chains;
mod guest;
mod input;
mod kernel;
mod lies;
pub mod oracle;
mod ports;
mod sysfs;

/// A target.
pub type Target = fn(&[u8]);

/// The targets, by name.
pub const TARGETS: [(&str, Target); 6] = [
    ("guest", guest::run),
    ("ports", ports::run),
    ("lies", lies::run),
    ("chains", chains::run),
    ("sysfs", sysfs::run),
    ("kernel", kernel::run),
];

/// The target of this name.
pub fn target(name: &str) -> Option<Target> {
    let found = TARGETS.iter().find(|(own, _)| *own == name)?;
    Some(found.1)
}
