//! One contract of `/dev/vfio` with two implementations: the model `vfio-model`, and a running
//! Linux.
//!
//! - [`Core`] is the contract: the calls of a user of VFIO.
//! - [`checks`] are named checks of its rules, for any implementation.
//! - [`random`] makes sequences of legal and illegal calls on two implementations, step by step,
//!   and reports each difference.
//!
//! The tests of this crate run the checks on the model. The program `conformance` runs both on a
//! machine with devices that are bound to vfio-pci; the nested tests of `tests/lab` ship it there.

pub mod arena;
pub mod call;
pub mod checks;
pub mod contract;
pub mod host;
pub mod linux;
pub mod map_cost;
pub mod map_sizes;
pub mod random;

pub use call::{Call, Outcome, Player};
pub use contract::Core;
pub use host::Scene;

/// The code of docs/embedding.md is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/embedding.md")]
pub struct Embedding;
