//! Errors of interrupts.

use std::io;

use super::IrqIndex;

/// An error of interrupts.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The VMM could not route an interrupt to the guest, or could not stop it.
    #[error("cannot route {index} to the guest: {source}")]
    Route {
        /// The interrupt index.
        index: IrqIndex,
        /// The error of the VMM: the hypervisor's errno, or `StorageFull` if GSIs ran out.
        source: io::Error,
    },
    /// No eventfd could be created.
    #[error("cannot make an eventfd for {index} vector {vector}: {source}")]
    Eventfd {
        /// The interrupt index.
        index: IrqIndex,
        /// The vector.
        vector: u16,
        /// The errno of `eventfd`: `EMFILE` if the limit on open files is too low.
        source: io::Error,
    },
    /// `VFIO_DEVICE_SET_IRQS` failed.
    #[error("VFIO_DEVICE_SET_IRQS ({index}, {what}): {source}")]
    SetIrqs {
        /// The interrupt index.
        index: IrqIndex,
        /// The requested change.
        what: String,
        /// The errno of the ioctl, or `StorageFull` if the host has too few vectors.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Route { source, .. }
            | Self::Eventfd { source, .. }
            | Self::SetIrqs { source, .. } => source.kind(),
        }
    }
}

/// Keeps the error, and the kind of its errno.
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::new(error.kind(), error)
    }
}
