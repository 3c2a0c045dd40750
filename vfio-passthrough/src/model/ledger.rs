//! The resources that a test holds: none at its end.

use super::guest::Guest;
use super::iommu::Iommu;
use super::pci::PciDevice;
use crate::address::ByteRange;

/// What is held in an IOMMU, a device and a guest. The default is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// The DMA mappings.
    pub mappings: Vec<ByteRange>,
    /// The guest physical ranges of the memory slots.
    pub slots: Vec<ByteRange>,
    /// The number of vectors that have a route to the guest.
    pub delivered: usize,
    /// The number of eventfds for vectors.
    pub eventfds: usize,
    /// The number of INTx pins that are connected.
    pub pins: usize,
    /// The interrupt index of the device that is enabled.
    pub interrupts: Option<u32>,
    /// The number of the device's events that have an eventfd.
    pub events: usize,
    /// The alarms, as [`Faults::alarms`](super::Faults::alarms) returns them.
    pub alarms: Vec<String>,
}

impl Ledger {
    /// Collects what is held now.
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
