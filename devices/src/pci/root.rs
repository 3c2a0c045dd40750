//! Bus 0: its functions, and the routing of accesses to them.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use thiserror::Error;
use vm_device::bus::{MmioAddress, MmioAddressOffset, PioAddress, PioAddressOffset};
use vm_device::{DeviceMmio, DevicePio};

use super::{DevFn, PciFunction, SLOTS, SlotsFreed};

/// The value of each byte of a read that no function claims (master abort, PCI 3.0, 3.7.4.2).
const MASTER_ABORT: u8 = 0xff;

/// Why a function could not be put on the bus.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SlotError {
    /// All device numbers are taken.
    #[error("all {SLOTS} slots of PCI bus 0 are taken")]
    Full,
    /// The device and function number are taken.
    #[error("PCI function 00:{0} is already taken")]
    Taken(DevFn),
}

/// The functions of a bus.
type Functions = BTreeMap<DevFn, Arc<dyn PciFunction>>;

/// Bus 0 below the host bridge: up to 32 devices with up to 8 functions each. Functions can come
/// and go while vCPUs access others.
#[derive(Default)]
pub struct PciRoot {
    /// An access clones the map's reference, so that the lock is not held while a function works.
    functions: RwLock<Arc<Functions>>,
}

impl PciRoot {
    /// An empty bus.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `function` at `devfn`.
    ///
    /// Software looks for the other functions of a device only if function 0 exists, and if its
    /// header type has the multifunction bit (PCI 3.0, 3.2.2.3.4).
    pub fn insert(&self, devfn: DevFn, function: Arc<dyn PciFunction>) -> Result<(), SlotError> {
        self.change(|functions| match functions.contains_key(&devfn) {
            true => Err(SlotError::Taken(devfn)),
            false => {
                functions.insert(devfn, function);
                Ok(())
            }
        })
    }

    /// Puts `function` at function 0 of the lowest free device number, and returns that number.
    pub fn push(&self, function: Arc<dyn PciFunction>) -> Result<u8, SlotError> {
        self.change(|functions| {
            let is_free = |slot: &u8| !functions.keys().any(|devfn| devfn.slot() == *slot);
            let slot = (0..SLOTS).find(is_free).ok_or(SlotError::Full)?;
            functions.insert(DevFn::of_slot(slot).ok_or(SlotError::Full)?, function);
            Ok(slot)
        })
    }

    /// Removes the functions of `slot`. An access that has begun may still reach them.
    pub fn remove(&self, slot: u8) {
        self.change(|functions| functions.retain(|devfn, _| devfn.slot() != slot));
    }

    /// Retries the BARs of all functions whose memory slot was refused because of an overlap.
    pub fn retry_placement(&self) {
        self.after_write(SlotsFreed(true));
    }

    fn change<T>(&self, change: impl FnOnce(&mut Functions) -> T) -> T {
        let mut functions = self.functions.write().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut functions))
    }

    /// Reads configuration space of the function at `devfn` (device number in bits 7:3, function
    /// number in bits 2:0).
    pub fn config_read(&self, devfn: u8, offset: u16, data: &mut [u8]) {
        match self.function(devfn) {
            Some(function) if is_config_access(offset, data.len()) => {
                function.config_read(offset, data)
            }
            _ => data.fill(MASTER_ABORT),
        }
    }

    /// Writes configuration space of the function at `devfn`. A write to an absent function is
    /// ignored.
    pub fn config_write(&self, devfn: u8, offset: u16, data: &[u8]) {
        let function = self.function(devfn);
        if let Some(function) = function.filter(|_| is_config_access(offset, data.len())) {
            self.after_write(function.config_write(offset, data));
        }
    }

    /// While a guest moves BARs they may overlap, and then a memory slot is refused. Retry those
    /// BARs now that a slot is free.
    fn after_write(&self, SlotsFreed(freed): SlotsFreed) {
        if freed {
            self.functions().values().for_each(|function| function.retry_placement());
        }
    }

    fn function(&self, devfn: u8) -> Option<Arc<dyn PciFunction>> {
        self.functions().get(&DevFn::from(devfn)).cloned()
    }

    fn functions(&self) -> Arc<Functions> {
        Arc::clone(&self.functions.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A configuration access has 1, 2 or 4 bytes within one dword (PCI 3.0, 3.2.2.3.2).
fn is_config_access(offset: u16, len: usize) -> bool {
    let within_dword = usize::from(offset & 3).saturating_add(len) <= 4;
    matches!(len, 1 | 2 | 4) && within_dword
}

/// The memory windows of the host bridge.
impl DeviceMmio for PciRoot {
    fn mmio_read(&self, base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        let gpa = base.0.wrapping_add(offset);
        if !self.functions().values().any(|function| function.memory_read(gpa, data)) {
            data.fill(MASTER_ABORT);
        }
    }

    fn mmio_write(&self, base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        let gpa = base.0.wrapping_add(offset);
        let written =
            self.functions().values().find_map(|function| function.memory_write(gpa, data));
        written.into_iter().for_each(|freed| self.after_write(freed));
    }
}

/// The port window of the host bridge.
impl DevicePio for PciRoot {
    fn pio_read(&self, base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        let port = base.0.wrapping_add(offset);
        if !self.functions().values().any(|function| function.io_read(port, data)) {
            data.fill(MASTER_ABORT);
        }
    }

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let port = base.0.wrapping_add(offset);
        let written = self.functions().values().find_map(|function| function.io_write(port, data));
        written.into_iter().for_each(|freed| self.after_write(freed));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// A function with one 16-byte memory BAR and one 4-byte I/O BAR. It records config writes, and
    /// reports freed slots for writes to register 0x10.
    pub struct TestFunction {
        pub bar: u64,
        pub port: u16,
        pub writes: Mutex<Vec<(u16, Vec<u8>)>>,
        pub retries: AtomicU32,
    }

    impl TestFunction {
        pub fn at(bar: u64, port: u16) -> Arc<Self> {
            Arc::new(Self { bar, port, writes: Mutex::new(Vec::new()), retries: AtomicU32::new(0) })
        }
    }

    impl PciFunction for TestFunction {
        fn config_read(&self, offset: u16, data: &mut [u8]) {
            for (byte, at) in data.iter_mut().zip(offset..) {
                *byte = at.to_le_bytes()[0] ^ at.to_le_bytes()[1];
            }
        }

        fn config_write(&self, offset: u16, data: &[u8]) -> SlotsFreed {
            self.writes.lock().unwrap().push((offset, data.to_vec()));
            SlotsFreed(offset == 0x10)
        }

        fn memory_write(&self, gpa: u64, _: &[u8]) -> Option<SlotsFreed> {
            (self.bar..self.bar + 16).contains(&gpa).then_some(SlotsFreed(true))
        }

        fn retry_placement(&self) {
            self.retries.fetch_add(1, Ordering::Relaxed);
        }

        fn memory_read(&self, gpa: u64, data: &mut [u8]) -> bool {
            let hit = (self.bar..self.bar + 16).contains(&gpa);
            if hit {
                data.fill(0x5a);
            }
            hit
        }

        fn io_read(&self, port: u16, data: &mut [u8]) -> bool {
            let hit = (self.port..self.port + 4).contains(&port);
            if hit {
                data.fill(0xa5);
            }
            hit
        }
    }

    fn memory(root: &PciRoot, gpa: u64) -> [u8; 4] {
        let mut data = [0; 4];
        root.mmio_read(MmioAddress(0x1000), gpa - 0x1000, &mut data);
        data
    }

    fn slot(number: u8) -> DevFn {
        DevFn::of_slot(number).unwrap()
    }

    #[test]
    fn fills_slots_from_the_lowest_and_has_32() {
        let root = PciRoot::new();
        root.insert(slot(1), TestFunction::at(0, 0)).unwrap();
        assert_eq!(root.push(TestFunction::at(0, 0)), Ok(0));
        assert_eq!(root.push(TestFunction::at(0, 0)), Ok(2));
        let taken = root.insert(slot(2), TestFunction::at(0, 0));
        assert_eq!(taken, Err(SlotError::Taken(slot(2))));
        assert_eq!(taken.unwrap_err().to_string(), "PCI function 00:02.0 is already taken");
        (3..32).for_each(|slot| assert_eq!(root.push(TestFunction::at(0, 0)), Ok(slot)));
        assert_eq!(root.push(TestFunction::at(0, 0)), Err(SlotError::Full));
    }

    #[test]
    fn a_slot_with_any_function_is_not_free() {
        let root = PciRoot::new();
        root.insert(DevFn::new(0, 5).unwrap(), TestFunction::at(0, 0)).unwrap();
        assert_eq!(root.push(TestFunction::at(0, 0)), Ok(1));
    }

    #[test]
    fn each_of_eight_functions_has_its_own_config_space() {
        let root = PciRoot::new();
        let functions: Vec<_> = (0..8).map(|_| TestFunction::at(0, 0)).collect();
        for (number, function) in (0..).zip(&functions) {
            root.insert(DevFn::new(5, number).unwrap(), function.clone()).unwrap();
        }
        (0..8).for_each(|number: u8| root.config_write(5 << 3 | number, 4, &[number]));
        for (number, function) in (0..).zip(&functions) {
            assert_eq!(*function.writes.lock().unwrap(), [(4, vec![number])]);
        }
    }

    #[test]
    fn removes_all_functions_of_a_slot_and_no_other() {
        let root = PciRoot::new();
        let at = [(4, 0), (5, 0), (5, 7), (6, 0)]
            .map(|(slot, number)| DevFn::new(slot, number).unwrap());
        at.iter().for_each(|devfn| root.insert(*devfn, TestFunction::at(0, 0)).unwrap());
        root.remove(5);
        let is_there = |devfn: &DevFn| root.function((*devfn).into()).is_some();
        assert_eq!(at.each_ref().map(is_there), [true, false, false, true]);
        assert_eq!(root.insert(at[1], TestFunction::at(0, 0)), Ok(()));
    }

    #[test]
    fn reads_all_ones_from_absent_functions() {
        let root = PciRoot::new();
        root.insert(slot(2), TestFunction::at(0, 0)).unwrap();
        root.insert(DevFn::new(2, 3).unwrap(), TestFunction::at(0, 0)).unwrap();
        let read = |devfn, offset| {
            let mut data = [0; 2];
            root.config_read(devfn, offset, &mut data);
            data
        };
        assert_eq!(read(2 << 3, 0), [0, 1]);
        assert_eq!(read(2 << 3 | 1, 0), [0xff; 2]);
        assert_eq!(read(2 << 3 | 3, 0), [0, 1]);
        assert_eq!(read(3 << 3, 0), [0xff; 2]);
    }

    #[test]
    fn forwards_no_access_that_crosses_a_dword() {
        let root = PciRoot::new();
        let function = TestFunction::at(0, 0);
        root.insert(slot(0), function.clone()).unwrap();
        root.config_write(0, 3, &[0; 2]);
        root.config_write(0, 0, &[0; 8]);
        root.config_write(0, 0, &[]);
        root.config_write(0, 2, &[7; 2]);
        assert_eq!(*function.writes.lock().unwrap(), [(2, vec![7; 2])]);
    }

    #[test]
    fn every_function_retries_placement_when_one_frees_slots() {
        let root = PciRoot::new();
        let functions = [TestFunction::at(0, 0), TestFunction::at(0, 0)];
        functions.iter().for_each(|function| {
            root.push(function.clone()).unwrap();
        });
        root.config_write(0, 4, &[0; 4]);
        root.config_write(0, 0x10, &[0; 4]);
        let retries =
            || functions.each_ref().map(|function| function.retries.load(Ordering::Relaxed));
        assert_eq!(retries(), [1, 1]);
        root.mmio_write(MmioAddress(0), 0x40, &[0; 4]);
        assert_eq!(retries(), [1, 1], "no BAR decodes 0x40");
        root.mmio_write(MmioAddress(0), 0x8, &[0; 4]);
        assert_eq!(retries(), [2, 2]);
    }

    #[test]
    fn routes_an_access_to_the_function_that_decodes_it() {
        let root = PciRoot::new();
        root.push(TestFunction::at(0x2000, 0xc000)).unwrap();
        root.push(TestFunction::at(0x3000, 0xc010)).unwrap();
        assert_eq!(memory(&root, 0x3008), [0x5a; 4]);
        assert_eq!(memory(&root, 0x3010), [0xff; 4]);
        let mut data = [0];
        root.pio_read(PioAddress(0xc000), 0x11, &mut data);
        assert_eq!(data, [0xa5]);
        root.pio_read(PioAddress(0xc000), 0x14, &mut data);
        assert_eq!(data, [0xff]);
    }
}
