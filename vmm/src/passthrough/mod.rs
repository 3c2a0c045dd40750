//! The assigned devices: which they are, how they are opened and placed, and what the host reports
//! of them.

pub(crate) mod addresses;
pub(crate) mod coalesced;
pub(crate) mod devices;
pub(crate) mod events;
pub(crate) mod function;
pub(crate) mod functions;
mod sync;

#[cfg(all(test, shuttle))]
mod interleavings;
#[cfg(test)]
mod tests;
