//! What can go wrong with a function.

use std::io;

use crate::address::{BarIndex, PciAddress};
use crate::dma;
use crate::irq::{self, IrqIndex};

/// What went wrong with a function. Every variant names the device and the operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A region could not be asked about, read, written or mapped.
    #[error("{address}: cannot {operation} region {region}: {source}")]
    Region {
        /// The device.
        address: PciAddress,
        /// What was tried.
        operation: &'static str,
        /// The region's index.
        region: u32,
        /// Why.
        source: io::Error,
    },
    /// The device is not one that can be passed through.
    #[error("{address}: {reason}")]
    NotUsable {
        /// The device.
        address: PciAddress,
        /// Why.
        reason: &'static str,
    },
    /// VFIO did not describe an interrupt index.
    #[error("{address}: VFIO_DEVICE_GET_IRQ_INFO ({index}): {source}")]
    DescribeInterrupts {
        /// The device.
        address: PciAddress,
        /// Which one.
        index: IrqIndex,
        /// Why.
        source: io::Error,
    },
    /// Interrupts could not be set up or taken down.
    #[error("{address}: {source}")]
    Interrupts {
        /// The device.
        address: PciAddress,
        /// Which step, and why.
        source: irq::Error,
    },
    /// The host VMM did not give vectors.
    #[error("{address}: no room for {vectors} {index} vectors: {source}")]
    Vectors {
        /// The device.
        address: PciAddress,
        /// Of which kind.
        index: IrqIndex,
        /// How many were asked for.
        vectors: u16,
        /// Why.
        source: io::Error,
    },
    /// A memory slot of a BAR could not be placed or removed, or the BAR not be unmapped.
    #[error("{address}: cannot {operation} {bar}: {source}")]
    Window {
        /// The device.
        address: PciAddress,
        /// What was tried.
        operation: &'static str,
        /// Of which BAR.
        bar: BarIndex,
        /// Why.
        source: io::Error,
    },
    /// A BAR cannot be at the address where the VMM places it.
    #[error(
        "{address}: cannot place {bar} at {place:#x}: the function has no such BAR, or it does not fit there"
    )]
    Place {
        /// The device.
        address: PciAddress,
        /// The BAR.
        bar: BarIndex,
        /// The address.
        place: u64,
    },
    /// A BAR could not be mapped for the DMA of other devices, which then do not reach it; or not be unmapped.
    #[error("{address}: {bar}, for the DMA of other devices: {source}")]
    P2p {
        /// The device.
        address: PciAddress,
        /// Of which BAR.
        bar: BarIndex,
        /// What was tried, and why it failed.
        source: dma::Error,
    },
    /// The function has no reset, and one is asked for.
    #[error(
        "{address}: {reason}; a guest would get it in the state in which its last user left it: 'reset=none' takes it so"
    )]
    NoReset {
        /// The device.
        address: PciAddress,
        /// Why there is none.
        reason: String,
    },
    /// The function could not be reset.
    #[error("{address}: {call}: {source}")]
    Reset {
        /// The device.
        address: PciAddress,
        /// The call that failed.
        call: &'static str,
        /// Why.
        source: io::Error,
    },
}
