//! What no program may let happen: the model goes on, and the test that looks at its ledger fails,
//! by name.

use std::collections::{BTreeMap, BTreeSet};

use crate::address::ByteRange;

/// The alarms, and what is looked at for them.
#[derive(Debug, Default)]
pub(super) struct Alarms {
    /// In words.
    pub raised: Vec<String>,
    /// What guests have in their memory, by where it is in this process.
    slots: BTreeMap<usize, ByteRange>,
    /// Mapped regions that fault, by where they are in this process: vfio-pci has zapped them.
    zapped: BTreeSet<usize>,
}

impl Alarms {
    /// A slot is placed.
    pub fn place(&mut self, address: usize, range: ByteRange) {
        self.slots.insert(address, range);
        self.look_at(address);
    }

    /// A slot is gone, or was to go and was made to fail: what it shows is as planned.
    pub fn remove(&mut self, address: usize) {
        self.slots.remove(&address);
    }

    /// A mapped region faults from now on (`vfio_pci_zap_bars`), or does not.
    pub fn zap(&mut self, address: usize, faults: bool) {
        match faults {
            true => self.zapped.insert(address),
            false => self.zapped.remove(&address),
        };
        self.look_at(address);
    }

    fn look_at(&mut self, address: usize) {
        if let Some(range) = self.slots.get(&address).filter(|_| self.zapped.contains(&address)) {
            self.raised.push(format!(
                "the guest has memory of a device at {range} that the device does not decode: an access of a vCPU faults"
            ));
        }
    }
}
