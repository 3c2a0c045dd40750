//! Counters that every thread can increment: accesses to devices, and system calls.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Serialize, Serializer};
use vm_device::bus::{MmioAddress, MmioAddressOffset, PioAddress, PioAddressOffset};
use vm_device::{DeviceMmio, DevicePio};

/// A counter that every thread can increment.
#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
pub(crate) struct Count(AtomicU64);

impl Count {
    /// Increments the counter.
    pub(crate) fn add_one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Clone for Count {
    fn clone(&self) -> Self {
        Self(AtomicU64::new(self.0.load(Ordering::Relaxed)))
    }
}

/// Distinct places that one device counts. [`Accesses`] also counts accesses to further places.
const PLACES: usize = 1024;

/// Traps of a guest per place. A place is a port, or an offset from the device's MMIO base.
#[derive(Debug, Default)]
pub(crate) struct PlaceCounts(Mutex<BTreeMap<u64, u64>>);

impl Clone for PlaceCounts {
    fn clone(&self) -> Self {
        Self(copy(&self.0))
    }
}

impl PlaceCounts {
    /// Counts a trap at `place`.
    pub(crate) fn at(&self, place: u64) {
        let mut counts = lock(&self.0);
        if counts.len() < PLACES || counts.contains_key(&place) {
            let count = counts.entry(place).or_default();
            *count = count.saturating_add(1);
        }
    }
}

/// JSON has no hexadecimal numbers, so places are strings such as "0x61".
impl Serialize for PlaceCounts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let counts = lock(&self.0);
        let named = |(place, count): (&u64, &u64)| (format!("{place:#x}"), *count);
        serializer.collect_map(counts.iter().map(named))
    }
}

/// Accesses to one device, or to unclaimed addresses.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Accesses {
    reads: Count,
    writes: Count,
    by_address: PlaceCounts,
}

impl Accesses {
    /// Counts a read at `place`.
    pub(crate) fn read(&self, place: u64) {
        self.reads.add_one();
        self.by_address.at(place);
    }

    /// Counts a write at `place`.
    pub(crate) fn write(&self, place: u64) {
        self.writes.add_one();
        self.by_address.at(place);
    }
}

/// A device with counted accesses.
pub(crate) struct Counted<D> {
    device: D,
    accesses: Arc<Accesses>,
}

fn port(base: PioAddress, offset: PioAddressOffset) -> u64 {
    base.0.wrapping_add(offset).into()
}

impl<D: DevicePio> DevicePio for Counted<D> {
    fn pio_read(&self, base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        self.accesses.read(port(base, offset));
        self.device.pio_read(base, offset, data);
    }

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        self.accesses.write(port(base, offset));
        self.device.pio_write(base, offset, data);
    }
}

impl<D: DeviceMmio> DeviceMmio for Counted<D> {
    fn mmio_read(&self, base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        self.accesses.read(offset);
        self.device.mmio_read(base, offset, data);
    }

    fn mmio_write(&self, base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        self.accesses.write(offset);
        self.device.mmio_write(base, offset, data);
    }
}

/// Accesses to the guest's fixed devices, by name.
#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
pub(crate) struct DeviceCounts(Mutex<BTreeMap<&'static str, Arc<Accesses>>>);

impl DeviceCounts {
    /// Counts accesses to `device` under `name`, together with those to earlier devices of that
    /// name.
    pub(crate) fn counted<D>(&self, name: &'static str, device: D) -> Arc<Counted<D>> {
        let accesses = Arc::clone(lock(&self.0).entry(name).or_default());
        Arc::new(Counted { device, accesses })
    }
}

/// A copy shares the counters of its devices with the original.
impl Clone for DeviceCounts {
    fn clone(&self) -> Self {
        Self(copy(&self.0))
    }
}

/// Traps into assigned functions and their interrupts, by address.
#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
pub(crate) struct FunctionCounts(Mutex<BTreeMap<String, Traps>>);

impl FunctionCounts {
    /// Adds `count` traps of a kind into the function `name`.
    pub(crate) fn trapped(&self, name: &str, kind: &'static str, count: u64) {
        let mut functions = lock(&self.0);
        let counts = &mut functions.entry(name.to_owned()).or_default().counts;
        let total = counts.entry(kind).or_default();
        *total = total.saturating_add(count);
    }

    /// The counters of traps into the BARs of the function `name`.
    pub(crate) fn bars(&self, name: &str) -> Arc<BarAccessCounts> {
        Arc::clone(&lock(&self.0).entry(name.to_owned()).or_default().bars)
    }

    /// Adds `count` interrupts of a vector of the function `name`.
    pub(crate) fn interrupts(&self, name: &str, vector: &str, count: u64) {
        let mut functions = lock(&self.0);
        let interrupts = &mut functions.entry(name.to_owned()).or_default().interrupts;
        let total = interrupts.entry(vector.to_owned()).or_default();
        *total = total.saturating_add(count);
    }
}

/// A copy shares the counters of BARs with the original.
impl Clone for FunctionCounts {
    fn clone(&self) -> Self {
        Self(copy(&self.0))
    }
}

/// Traps into one assigned function, and its interrupts.
#[derive(Clone, Debug, Default, Serialize)]
struct Traps {
    #[serde(flatten)]
    counts: BTreeMap<&'static str, u64>,
    bars: Arc<BarAccessCounts>,
    /// Interrupts by vector, if the host reports them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    interrupts: BTreeMap<String, u64>,
}

/// Traps into the BARs of one assigned function, by page: `bars[0]` is BAR0, the last item is the
/// expansion ROM.
#[derive(Debug, Default, Serialize)]
pub(crate) struct BarAccessCounts([PlaceCounts; 7]);

impl BarAccessCounts {
    /// Counts a trap into BAR number `bar` at `offset`.
    pub(crate) fn at(&self, bar: u8, offset: u64) {
        if let Some(counts) = self.0.get(usize::from(bar)) {
            counts.at(offset & !0xfff);
        }
    }
}

/// System calls by name.
#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
pub(crate) struct Calls(Mutex<BTreeMap<&'static str, u64>>);

impl Calls {
    /// Adds `count` calls of `name`.
    pub(crate) fn add(&self, name: &'static str, count: u64) {
        let mut calls = lock(&self.0);
        let total = calls.entry(name).or_default();
        *total = total.saturating_add(count);
    }
}

impl Clone for Calls {
    fn clone(&self) -> Self {
        Self(copy(&self.0))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn copy<T: Clone>(of: &Mutex<T>) -> Mutex<T> {
    Mutex::new(lock(of).clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_a_limited_number_of_places() {
        let counts = PlaceCounts::default();
        (0..2 * PLACES as u64).for_each(|place| counts.at(place));
        counts.at(0);
        let json = serde_json::to_value(&counts).unwrap();
        assert_eq!(json.as_object().unwrap().len(), PLACES);
        assert_eq!(json["0x0"], 2);
    }
}
