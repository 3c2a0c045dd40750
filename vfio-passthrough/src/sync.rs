//! The lock of a function: std's, or in builds with `--cfg shuttle` one whose scheduler a test drives.

#[cfg(shuttle)]
pub use shuttle::sync::{Mutex, MutexGuard};
#[cfg(not(shuttle))]
pub use std::sync::{Mutex, MutexGuard};
