//! Message-signalled interrupts as a guest programs them, by MSI or by MSI-X.

use std::collections::BTreeMap;

/// The write by which a function signals an interrupt (PCI 3.0, 6.8.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MsiMessage {
    /// The address; on x86 in 0xfee00000-0xfeefffff.
    pub address: u64,
    /// The data.
    pub data: u32,
}

/// The state of MSI or MSI-X that the guest programmed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgrammedVectors {
    /// MSI or MSI-X is enabled.
    pub enabled: bool,
    /// The number of vectors while it is enabled.
    pub vectors: u16,
    /// The messages of the vectors that are not masked. It is empty while MSI or MSI-X is disabled.
    pub unmasked: BTreeMap<u16, MsiMessage>,
}
