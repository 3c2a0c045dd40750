//! Mapped regions of a device, and whether they fault since the device does not decode them
//! (`vfio_pci_zap_bars`).

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::opened::{ADDRESS, DeviceFile};
use super::{Faults, PciDevice, lock};

/// The mapped regions of a device, by number: where they are in this process.
#[derive(Debug, Default)]
pub(super) struct Mmaps {
    last: u64,
    addresses: BTreeMap<u64, usize>,
    /// They fault.
    zapped: bool,
}

/// Holds the device of a mapped region and its file, and takes the region from the list at its end.
pub(super) struct Hold {
    device: Arc<PciDevice>,
    _file: Arc<DeviceFile>,
    number: u64,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(address) = lock(&self.device.mmaps).addresses.remove(&self.number) {
            self.device.faults.with_alarms(|alarms| alarms.zap(address, false));
        }
    }
}

impl Mmaps {
    fn zap(&mut self, zapped: bool, faults: &Faults) {
        if self.zapped != zapped {
            self.zapped = zapped;
            faults.with_alarms(|alarms| {
                let addresses = self.addresses.values();
                addresses.for_each(|address| alarms.zap(*address, zapped));
            });
        }
    }
}

impl PciDevice {
    /// What a mapped region is to hold.
    pub(super) fn hold(self: Arc<Self>, file: Arc<DeviceFile>) -> Arc<Hold> {
        let number = {
            let mut mmaps = lock(&self.mmaps);
            mmaps.last = mmaps.last.wrapping_add(1);
            mmaps.last
        };
        Arc::new(Hold { device: self, _file: file, number })
    }

    /// A region is mapped at this address.
    pub(super) fn mapped(&self, hold: &Hold, address: usize) {
        let mut mmaps = lock(&self.mmaps);
        mmaps.addresses.insert(hold.number, address);
        let zapped = mmaps.zapped;
        self.faults.with_alarms(|alarms| alarms.zap(address, zapped));
    }

    /// A call that may change what the device decodes: its mapped regions fault from then on, or do
    /// so no more. It waits for DMA that is under way, so that there is none after bus mastering is
    /// off.
    pub(super) fn changing_decoding(
        &self,
        call: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        let mut mmaps = lock(&self.mmaps);
        let result = call();
        mmaps.zap(!self.opened.system.decodes_memory(ADDRESS), &self.faults);
        result
    }
}
