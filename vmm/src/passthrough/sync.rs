//! The lock of what vCPUs share: std's, or in builds with `--cfg shuttle` one whose scheduler a
//! test drives.

#[cfg(shuttle)]
pub(crate) use shuttle::sync::Mutex;
#[cfg(not(shuttle))]
pub(crate) use std::sync::Mutex;
