//! The mapped regions of a device, which fault while the device does not decode its memory
//! (`vfio_pci_zap_bars`).

use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use super::faults::{Faults, lock};
use super::opened::{ADDRESS, DeviceFile};

/// The mapped regions of a device.
#[derive(Debug)]
pub(super) struct Mmaps {
    faults: Arc<Faults>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last: u64,
    /// The address of each mapped region in this process.
    addresses: BTreeMap<u64, usize>,
    /// Whether the regions fault.
    zapped: bool,
}

/// Holds the device and its file while a region is mapped.
pub(super) struct Hold {
    mmaps: Arc<Mmaps>,
    _device: Arc<dyn Any + Send + Sync>,
    _file: Arc<DeviceFile>,
    number: u64,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(address) = lock(&self.mmaps.state).addresses.remove(&self.number) {
            self.mmaps.faults.with_alarms(|alarms| alarms.zap(address, false));
        }
    }
}

impl Hold {
    /// The region is mapped at this address.
    pub fn mapped_at(&self, address: usize) {
        let mut state = lock(&self.mmaps.state);
        state.addresses.insert(self.number, address);
        self.mmaps.faults.with_alarms(|alarms| alarms.zap(address, state.zapped));
    }
}

impl Mmaps {
    pub fn new(faults: Arc<Faults>) -> Arc<Self> {
        Arc::new(Self { faults, state: Mutex::default() })
    }

    /// What a mapped region holds.
    pub fn hold(
        self: &Arc<Self>,
        device: Arc<dyn Any + Send + Sync>,
        file: Arc<DeviceFile>,
    ) -> Arc<Hold> {
        let mut state = lock(&self.state);
        state.last = state.last.wrapping_add(1);
        Arc::new(Hold { mmaps: self.clone(), _device: device, _file: file, number: state.last })
    }

    /// Does DMA, while no call changes what the device decodes.
    pub fn exclusively<T>(&self, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let _guard = lock(&self.state);
        act()
    }

    /// Makes a call that may change what the device decodes: its mapped regions fault from then on,
    /// or do not. The call waits for DMA, so that no DMA follows the end of bus mastering.
    pub fn change_decoding(
        &self,
        file: &DeviceFile,
        call: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        let mut state = lock(&self.state);
        let result = call();
        let zapped = !file.system.decodes_memory(ADDRESS);
        if state.zapped != zapped {
            state.zapped = zapped;
            self.faults.with_alarms(|alarms| {
                state.addresses.values().for_each(|address| alarms.zap(*address, zapped));
            });
        }
        result
    }
}
