//! Fuzz targets. They check that no input from a guest, a device, sysfs, a kernel image or a
//! client of the control socket makes the code panic or breaks an invariant.
//!
//! A target is a function of bytes that panics on an error. `tests/fuzz/run TARGET [SECONDS]` runs
//! one with libFuzzer on stable Rust. It writes inputs that reach new code to
//! `target/fuzzing/found/TARGET`; copy those worth keeping to `corpus/TARGET`. `cargo test -p fuzz`
//! runs the corpus.
//!
//! Targets with a PCI function check these invariants ([`oracle`]):
//!
//! - Memory slots overlap neither RAM nor each other.
//! - No memory slot contains a page of the MSI-X table or of the pending bits.
//! - The host binds what the guest asks for: when the guest writes the same values again, nothing
//!   changes.
//! - Nothing is shown that does nothing: each capability is one that the library's table shows, with
//!   no more vectors than VFIO has, and its MSI-X table is inside a BAR. No capability reaches into
//!   another one, and nothing is enabled that the function is not capable of (`shown`).
//! - After shutdown, the function holds no slot, vector or pin.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a target that fails panics"
)]

mod chains;
mod control;
mod guest;
mod input;
mod kernel;
mod lies;
pub mod oracle;
mod ports;
pub mod shown;
mod sysfs;

/// A fuzz target: it panics if an invariant does not hold for these bytes.
pub type Target = fn(&[u8]);

/// All targets with their names.
pub const TARGETS: [(&str, Target); 7] = [
    ("guest", guest::run),
    ("ports", ports::run),
    ("lies", lies::run),
    ("chains", chains::run),
    ("sysfs", sysfs::run),
    ("kernel", kernel::run),
    ("control", control::run),
];

/// Finds the target called `name`.
pub fn target(name: &str) -> Option<Target> {
    let found = TARGETS.iter().find(|(own, _)| *own == name)?;
    Some(found.1)
}
