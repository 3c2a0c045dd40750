//! MSI routing of KVM: eventfds, irqfds and one routing table for the whole VM.

mod deferred;
mod entries;
mod eventfds;
mod gsis;
mod own;
mod router;
mod shared;
mod table;
mod vectors;

pub use deferred::DeferredRoutes;
pub use own::KvmGsi;
pub use router::KvmRouter;

// They look at the interrupt controllers of an x86 VM.
#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod tests;
