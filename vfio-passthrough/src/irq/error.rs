//! What can go wrong with interrupts.

use std::io;

use super::IrqIndex;

/// What went wrong with interrupts.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host VMM could not route them to the guest.
    #[error("cannot route {index} to the guest: {source}")]
    Route {
        /// The interrupt index.
        index: IrqIndex,
        /// The hypervisor's errno.
        source: io::Error,
    },
    /// No eventfd could be made.
    #[error("cannot make an eventfd for {index} vector {vector}: {source}")]
    Eventfd {
        /// The interrupt index.
        index: IrqIndex,
        /// The vector.
        vector: u16,
        /// `EMFILE` where the limit on open files is too low.
        source: io::Error,
    },
    /// VFIO refused.
    #[error("VFIO_DEVICE_SET_IRQS ({index}, {what}): {source}")]
    SetIrqs {
        /// The interrupt index.
        index: IrqIndex,
        /// What was asked.
        what: String,
        /// The kernel's errno.
        source: io::Error,
    },
}
