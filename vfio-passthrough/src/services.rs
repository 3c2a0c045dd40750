//! All that a function needs of its VMM, as one value.

use std::fmt;
use std::sync::Arc;

use crate::dma::DmaSpace;
use crate::host::{IntxLine, MemorySlots, MsiRouter};

/// What a function needs of the VMM that it is in.
#[derive(Clone)]
pub struct VmmServices {
    /// Puts BARs into the guest's memory.
    pub slots: Arc<dyn MemorySlots>,
    /// Routes message-signalled interrupts into the guest.
    pub msi: Arc<dyn MsiRouter>,
    /// The line that the function's INTx pin is wired to. Without one the guest sees a function
    /// without a pin.
    pub intx: Option<Arc<dyn IntxLine>>,
    /// Where other devices of the guest reach the function's BARs by DMA, as far as they are in the
    /// guest's memory and the IOMMU can map them; `None`: nowhere. The guest's only function needs
    /// none.
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
