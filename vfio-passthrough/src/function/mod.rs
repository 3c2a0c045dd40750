//! A PCI function of the host that is assigned to a guest. The VMM's PCI bus calls it.

mod absent;
mod access;
mod build;
mod change;
mod effects;
mod events;
mod lifecycle;
mod reset;
mod state;

pub use crate::error::Error;
pub use effects::ConfigEffects;
pub use reset::{Reset, ResetPolicy};
pub use state::PassthroughFunction;
