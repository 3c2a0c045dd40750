//! Interrupts: what the guest programmed and what is bound in the host are kept apart, and reconciled.
//!
//! [`plan`] is pure: from the two states to the steps between them. [`binding`] carries them out.

pub mod binding;
pub mod plan;
