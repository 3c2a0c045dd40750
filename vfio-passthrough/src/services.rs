//! The services that a VMM gives to a function.

use std::fmt;
use std::sync::Arc;

use crate::dma::DmaSpace;
use crate::host::{IntxLine, MemorySlots, MsiRouter};

/// The services that a VMM gives to a function.
#[derive(Clone)]
pub struct VmmServices {
    /// Puts BARs into the guest's memory.
    pub slots: Arc<dyn MemorySlots>,
    /// Routes message-signalled interrupts into the guest.
    pub msi: Arc<dyn MsiRouter>,
    /// The line of the function's INTx pin. If it is `None`, the guest sees a function without a
    /// pin.
    pub intx: Option<Arc<dyn IntxLine>>,
    /// The DMA space in which the guest's other devices reach the function's BARs. A BAR is mapped
    /// there while it is in guest memory, if the IOMMU can map it. If it is `None`, no BAR is
    /// mapped: a guest with one function of PCI Express needs no DMA space here
    /// ([`set_peers`](crate::PassthroughFunction::set_peers)).
    pub p2p: Option<DmaSpace>,
}

impl fmt::Debug for VmmServices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VmmServices")
            .field("intx", &self.intx.is_some())
            .field("p2p", &self.p2p.is_some())
            .finish_non_exhaustive()
    }
}
