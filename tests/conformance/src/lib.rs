//! One contract of `/dev/vfio`, two implementations: the model of `vfio-passthrough`, and a running Linux.
//!
//! - [`Core`] is the contract: the operations that a user of VFIO has.
//! - [`checks`] are named checks of its rules, generic over the implementation.
//! - [`random`] makes sequences of legal and illegal calls, has two implementations carry them out step by step,
//!   and tells of each difference.
//!
//! The tests of this crate run the checks against the model. The program `conformance` runs both in a machine
//! with devices that vfio-pci has; the nested tests of `tests/lab` ship it there.

pub mod arena;
pub mod call;
pub mod checks;
pub mod contract;
pub mod host;
pub mod linux;
pub mod map_cost;
pub mod random;

pub use call::{Call, Outcome, Player};
pub use contract::Core;
pub use host::Scene;

/// The code of docs/embedding.md is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/embedding.md")]
pub struct Embedding;
