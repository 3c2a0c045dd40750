//! Message-signalled interrupts as a guest programs them, by MSI or by MSI-X.

use std::collections::BTreeMap;

/// What a function writes to signal an interrupt (PCI 3.0, 6.8.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MsiMessage {
    /// The address written to; on x86 in 0xfee00000-0xfeefffff.
    pub address: u64,
    /// The value written.
    pub data: u32,
}

/// What the guest programmed of MSI or of MSI-X.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgrammedVectors {
    /// MSI or MSI-X is enabled.
    pub enabled: bool,
    /// The number of vectors while it is enabled.
    pub vectors: u16,
    /// The messages of the vectors that may fire now: none while it is disabled.
    pub unmasked: BTreeMap<u16, MsiMessage>,
}
