//! The lock of a function: that of std, or with `--cfg shuttle` one whose scheduler a test
//! controls.

#[cfg(shuttle)]
pub use shuttle::sync::{Mutex, MutexGuard};
#[cfg(not(shuttle))]
pub use std::sync::{Mutex, MutexGuard};
