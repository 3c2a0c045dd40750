//! The rules of the PCI specifications as pure code: registers, capability lists, the guest's view
//! of config space, BARs, MSI and MSI-X.

pub mod bar;
pub mod capability_table;
pub mod caps;
pub mod config;
pub mod message;
pub mod msi;
pub mod msix;
pub mod presence;
pub mod regs;
pub mod rom;
pub mod view;
