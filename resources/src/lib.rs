//! The guest's physical layout. [`Layout::plan`] is a pure function from what the guest needs and
//! what the IOMMU can reach to the addresses of RAM and BARs.

#![cfg_attr(test, allow(clippy::arithmetic_side_effects, reason = "a test that overflows fails"))]

mod layout;
mod range;

pub use layout::{
    BarRequest, BarSpace, CpuReach, IoReach, Layout, LayoutError, LayoutRequest, NoRoom, PlacedBar,
    Reserved, Spare,
};
pub use range::AddressRange;

/// The README's code is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
