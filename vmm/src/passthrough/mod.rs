//! The assigned devices: addresses, opening, placement, coalesced writes, and events of the host.

pub(crate) mod addition;
pub(crate) mod addresses;
pub(crate) mod assigned;
pub(crate) mod coalesced;
pub(crate) mod devices;
pub(crate) mod events;
pub(crate) mod function;
pub(crate) mod functions;
pub(crate) mod hot_plug;
pub(crate) mod iommu;
pub(crate) mod mapping;
pub(crate) mod places;
pub(crate) mod side_by_side;
pub(crate) mod slots;
mod sync;

#[cfg(all(test, shuttle))]
mod interleavings;
#[cfg(test)]
mod tests;
