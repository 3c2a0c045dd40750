//! VFIO's interrupt indexes of a PCI device.

use std::fmt;

use vfio_bindings::bindings::vfio as sys;

/// An interrupt index of a PCI device (`VFIO_PCI_*_IRQ_INDEX`, linux/vfio.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqIndex {
    /// The INTx pin.
    Intx,
    /// MSI: up to 32 vectors.
    Msi,
    /// MSI-X: up to 2048 vectors.
    Msix,
    /// An event for the VMM: the device reported an uncorrectable error (AER).
    Error,
    /// An event for the VMM: the host asks for the device.
    Request,
}

impl IrqIndex {
    /// VFIO's number of the index.
    pub fn number(self) -> u32 {
        match self {
            Self::Intx => sys::VFIO_PCI_INTX_IRQ_INDEX,
            Self::Msi => sys::VFIO_PCI_MSI_IRQ_INDEX,
            Self::Msix => sys::VFIO_PCI_MSIX_IRQ_INDEX,
            Self::Error => sys::VFIO_PCI_ERR_IRQ_INDEX,
            Self::Request => sys::VFIO_PCI_REQ_IRQ_INDEX,
        }
    }
}

impl fmt::Display for IrqIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Intx => "INTx",
            Self::Msi => "MSI",
            Self::Msix => "MSI-X",
            Self::Error => "error",
            Self::Request => "request",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_the_names_of_the_specification() {
        use IrqIndex::{Error, Intx, Msi, Msix, Request};
        let names = [Intx, Msi, Msix, Error, Request].map(|index| index.to_string());
        assert_eq!(names, ["INTx", "MSI", "MSI-X", "error", "request"]);
    }
}
