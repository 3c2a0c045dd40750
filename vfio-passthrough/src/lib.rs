//! VFIO PCI passthrough.
#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, reason = "a test that overflows panics")
)]

pub mod address;
pub mod backend;
mod builder;
pub mod counters;
pub mod dma;
pub mod function;
pub mod host;
pub mod irq;
#[cfg(feature = "kvm")]
pub mod kvm;
pub mod layout;
#[cfg(feature = "model")]
pub mod model;
pub mod pci;
mod window;

pub use address::{BarIndex, ByteRange, Iova, PciAddress};
pub use backend::group::Container;
pub use builder::Host;
pub use dma::DmaSpace;
pub use function::PassthroughFunction;
pub use pci::bar::{Bar, BarKind, Space};
