//! Guest resources handed out as leases, and the guest's physical layout.
//!
//! [`Layout`] is planned once, purely, from what the guest needs and what the IOMMU can reach.
//! [`Pool`] hands out pieces of it while the VM runs: GSIs, memory slots, ports, memory. A [`Lease`]
//! gives itself back when dropped.

#![cfg_attr(
    test,
    allow(
        clippy::arithmetic_side_effects,
        reason = "tests say what they expect by panicking"
    )
)]

mod layout;
mod pool;
mod range;

pub use layout::{BarRequest, BarSpace, IoReach, Layout, LayoutError, LayoutRequest, PlacedBar};
pub use pool::{Lease, Pool, PoolError};
pub use range::AddressRange;
