//! What no program may cause: the model goes on, and the alarm is in the ledger of the test.

use std::collections::{BTreeMap, BTreeSet};

use crate::address::ByteRange;

/// The alarms, and the state that raises them.
#[derive(Debug, Default)]
pub(super) struct Alarms {
    /// The alarms in words.
    pub raised: Vec<String>,
    /// The guest physical range of each memory slot, by its address in this process.
    slots: BTreeMap<usize, ByteRange>,
    /// The addresses in this process of mapped regions that fault: vfio-pci has zapped them.
    zapped: BTreeSet<usize>,
}

impl Alarms {
    /// The VMM has placed a slot.
    pub fn place(&mut self, address: usize, range: ByteRange) {
        self.slots.insert(address, range);
        self.check(address);
    }

    /// The VMM has removed a slot, or a fault has prevented that.
    pub fn remove(&mut self, address: usize) {
        self.slots.remove(&address);
    }

    /// A mapped region faults from now on (`vfio_pci_zap_bars`), or stops to.
    pub fn zap(&mut self, address: usize, faults: bool) {
        match faults {
            true => self.zapped.insert(address),
            false => self.zapped.remove(&address),
        };
        self.check(address);
    }

    fn check(&mut self, address: usize) {
        if let Some(range) = self.slots.get(&address).filter(|_| self.zapped.contains(&address)) {
            self.raised.push(format!(
                "the guest has memory of a device at {range} that the device does not decode: \
                 an access of a vCPU faults"
            ));
        }
    }
}
