//! Addresses of boot data in guest RAM.

/// The zero page (Linux) or the start info (PVH).
pub(crate) const START_INFO: u64 = 0x7000;
/// Page tables for the 64-bit entry.
pub(crate) const PAGE_TABLES: u64 = 0x9000;
/// The kernel command line.
pub(crate) const CMDLINE: u64 = 0x2_0000;
/// The start of RAM above the firmware area of PCs, and of the kernel.
pub(crate) const HIGH_RAM: u64 = 0x10_0000;
