//! What the PCI specifications say, as pure code: registers, capability chains, the guest's view of
//! config space, BARs, MSI-X.

pub mod bar;
pub mod caps;
pub mod config;
pub mod message;
pub mod msi;
pub mod msix;
pub mod regs;
pub mod view;
