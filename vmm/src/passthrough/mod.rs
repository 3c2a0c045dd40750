//! The assigned devices: addresses, opening, placement, coalesced writes, and events of the host.

pub(crate) mod addresses;
pub(crate) mod coalesced;
pub(crate) mod devices;
pub(crate) mod events;
pub(crate) mod function;
pub(crate) mod functions;
pub(crate) mod iommu;
pub(crate) mod mapping;
pub(crate) mod places;
pub(crate) mod side_by_side;
mod sync;

#[cfg(all(test, shuttle))]
mod interleavings;
#[cfg(test)]
mod tests;
