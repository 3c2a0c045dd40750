//! What a test holds of the host: nothing at its end, or what it says itself.

use super::{Guest, Iommu, PciDevice};
use crate::address::ByteRange;

/// What is held of an IOMMU, a device and a guest. The default is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// The mappings for DMA.
    pub mappings: Vec<ByteRange>,
    /// What memory slots cover.
    pub slots: Vec<ByteRange>,
    /// How many vectors are delivered to the guest.
    pub delivered: usize,
    /// How many eventfds there are for vectors.
    pub eventfds: usize,
    /// How many INTx pins are wired.
    pub pins: usize,
    /// The interrupt index of the device that is on.
    pub interrupts: Option<u32>,
    /// How many of the device's events the host VMM hears.
    pub events: usize,
    /// What should never have happened: see [`Faults::alarms`](super::Faults::alarms).
    pub alarms: Vec<String>,
}

impl Ledger {
    /// What is held now.
    pub fn of(iommu: &Iommu, device: &PciDevice, guest: &Guest) -> Self {
        Self {
            mappings: iommu.mappings(),
            slots: guest.slots(),
            delivered: guest.delivered().len(),
            eventfds: guest.triggers(),
            pins: guest.pins(),
            interrupts: device.irqs().active,
            events: device.heard(),
            alarms: guest.faults.alarms(),
        }
    }
}
