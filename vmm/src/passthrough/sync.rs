//! The mutex that vCPUs share: std's, or with `--cfg shuttle` a mutex whose scheduler a test
//! controls.

#[cfg(shuttle)]
pub(crate) use shuttle::sync::Mutex;
#[cfg(not(shuttle))]
pub(crate) use std::sync::Mutex;
