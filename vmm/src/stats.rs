//! Counters: what the guest made the VMM do, and how long the start took. Written as JSON by `--stats`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde::{Serialize, Serializer};
use serde_json::Value;
use vm_device::bus::{MmioAddress, MmioAddressOffset, PioAddress, PioAddressOffset};
use vm_device::{DeviceMmio, DevicePio};

use crate::Error;

/// One counter, added to by any thread.
#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Count(AtomicU64);

impl Count {
    /// One more.
    pub fn add_one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Clone for Count {
    fn clone(&self) -> Self {
        Self(AtomicU64::new(self.0.load(Ordering::Relaxed)))
    }
}

/// Exits to userspace, by reason.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Exits {
    /// All of them.
    pub total: Count,
    /// Reads of ports.
    pub io_in: Count,
    /// Writes of ports.
    pub io_out: Count,
    /// Reads of memory that is not RAM.
    pub mmio_read: Count,
    /// Writes of memory that is not RAM.
    pub mmio_write: Count,
    /// Halts; none with in-kernel local APICs.
    pub hlt: Count,
    /// All else, such as signals.
    pub other: Count,
    /// Writes that came with another exit: see [`crate::posted`]. They are in no other count of exits.
    pub posted: Count,
}

/// How many places one device counts apart. A guest that goes through more is counted all the same, in
/// [`Accesses`].
const PLACES: usize = 1024;

/// Where a guest traps: a count a place. A place is a port, or an offset from where the device begins in memory.
#[derive(Debug, Default)]
pub struct Heat(Mutex<BTreeMap<u64, u64>>);

impl Clone for Heat {
    fn clone(&self) -> Self {
        Self(copy(&self.0))
    }
}

impl Heat {
    /// One more trap at `place`.
    pub fn at(&self, place: u64) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() < PLACES || counts.contains_key(&place) {
            let count = counts.entry(place).or_default();
            *count = count.saturating_add(1);
        }
    }
}

/// JSON has no hexadecimal numbers: places are strings such as "0x61".
impl Serialize for Heat {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let named = |(place, count): (&u64, &u64)| (format!("{place:#x}"), *count);
        serializer.collect_map(counts.iter().map(named))
    }
}

/// Accesses to one device, or to none.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Accesses {
    reads: Count,
    writes: Count,
    by_address: Heat,
}

impl Accesses {
    /// A read at `place`.
    pub fn read(&self, place: u64) {
        self.reads.add_one();
        self.by_address.at(place);
    }

    /// A write at `place`.
    pub fn write(&self, place: u64) {
        self.writes.add_one();
        self.by_address.at(place);
    }
}

/// A device that counts the accesses to it.
pub struct Counted<D> {
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

/// Traps into one assigned function, and its interrupts.
#[derive(Clone, Debug, Default, Serialize)]
struct Traps {
    #[serde(flatten)]
    counts: BTreeMap<&'static str, u64>,
    bars: Arc<BarHeat>,
    /// By vector, where they are known.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    interrupts: BTreeMap<String, u64>,
}

/// Traps into the BARs of one assigned function, by their pages: those of BAR0 are `bars[0]`, those of the ROM
/// the last.
#[derive(Debug, Default, Serialize)]
pub struct BarHeat([Heat; 7]);

impl BarHeat {
    /// A trap into BAR number `bar`, at `offset`.
    pub fn at(&self, bar: u8, offset: u64) {
        if let Some(heat) = self.0.get(usize::from(bar)) {
            heat.at(offset & !0xfff);
        }
    }
}

/// Calls of the kernel by name.
#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Calls(Mutex<BTreeMap<&'static str, u64>>);

impl Calls {
    /// `count` more calls of `name`.
    pub fn add(&self, name: &'static str, count: u64) {
        let mut calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let total = calls.entry(name).or_default();
        *total = total.saturating_add(count);
    }
}

/// Everything that is counted.
#[derive(Debug, Serialize)]
pub struct Stats {
    phases_ns: Mutex<BTreeMap<&'static str, u64>>,
    #[serde(skip)]
    last_mark: Mutex<Instant>,
    /// Exits to userspace.
    pub exits: Exits,
    /// How often the main thread woke up, for whatever it waits for.
    pub wakeups: Count,
    devices: Mutex<BTreeMap<String, serde_json::Value>>,
    #[serde(skip)]
    counted: Mutex<BTreeMap<&'static str, Arc<Accesses>>>,
    #[serde(skip)]
    traps: Mutex<BTreeMap<String, Traps>>,
    #[serde(skip)]
    /// Accesses that no device claimed.
    pub unclaimed: Accesses,
    /// Calls of KVM.
    pub kvm_ioctls: Calls,
    /// Calls of VFIO.
    pub vfio_ioctls: Calls,
    /// Regions of RAM: as many DMA mappings are made with a device assigned.
    pub ram_regions: Count,
    /// How often the guest was booted again.
    pub reboots: Count,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            phases_ns: Mutex::default(),
            last_mark: Mutex::new(Instant::now()),
            exits: Exits::default(),
            wakeups: Count::default(),
            devices: Mutex::default(),
            counted: Mutex::default(),
            traps: Mutex::default(),
            unclaimed: Accesses::default(),
            kvm_ioctls: Calls::default(),
            vfio_ioctls: Calls::default(),
            ram_regions: Count::default(),
            reboots: Count::default(),
        }
    }
}

impl Stats {
    /// Ends a phase of the start: what passed since the last one ended is its time. A phase that comes again
    /// when the guest reboots is not counted again.
    pub fn phase(&self, name: &'static str) {
        let now = Instant::now();
        let mut last = self.last_mark.lock().unwrap_or_else(PoisonError::into_inner);
        let nanoseconds = u64::try_from(now.duration_since(*last).as_nanos()).unwrap_or(u64::MAX);
        *last = now;
        self.phases_ns
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(name)
            .or_insert(nanoseconds);
    }

    /// Counts the accesses to `device` under `name`, with those to former devices of that name.
    pub fn counted<D>(&self, name: &'static str, device: D) -> Arc<Counted<D>> {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let accesses = Arc::clone(counted.entry(name).or_default());
        Arc::new(Counted { device, accesses })
    }

    /// `count` more traps of a kind into the function `name`.
    pub fn trapped(&self, name: &str, kind: &'static str, count: u64) {
        let mut traps = self.traps.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = &mut traps.entry(name.to_owned()).or_default().counts;
        let total = counts.entry(kind).or_default();
        *total = total.saturating_add(count);
    }

    /// Where traps into the BARs of the function `name` are counted.
    pub fn bar_heat(&self, name: &str) -> Arc<BarHeat> {
        let mut traps = self.traps.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&traps.entry(name.to_owned()).or_default().bars)
    }

    /// `count` more interrupts of a vector of the function `name`.
    pub fn interrupts(&self, name: &str, vector: &str, count: u64) {
        let mut traps = self.traps.lock().unwrap_or_else(PoisonError::into_inner);
        let interrupts = &mut traps.entry(name.to_owned()).or_default().interrupts;
        let total = interrupts.entry(vector.to_owned()).or_default();
        *total = total.saturating_add(count);
    }

    fn device(&self, name: impl Into<String>, counts: impl Serialize) {
        if let Ok(counts) = serde_json::to_value(counts) {
            self.devices.lock().unwrap_or_else(PoisonError::into_inner).insert(name.into(), counts);
        }
    }

    /// Everything, as JSON.
    pub fn json(&self) -> Value {
        let counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        counted.iter().for_each(|(name, accesses)| self.device(*name, accesses.as_ref()));
        let traps = self.traps.lock().unwrap_or_else(PoisonError::into_inner);
        traps.iter().for_each(|(name, counts)| self.device(name, counts));
        self.device("unclaimed", &self.unclaimed);
        // All keys are strings, and nothing here fails to be written.
        serde_json::to_value(self).unwrap_or_default()
    }
}

/// Where everything is written at the end, as JSON. It is opened at the start: no file is opened while a guest runs.
pub struct StatsFile {
    path: PathBuf,
    file: File,
}

impl StatsFile {
    /// The file at `path`, which is empty from now on.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref().to_owned();
        match File::create(&path) {
            Ok(file) => Ok(Self { path, file }),
            Err(source) => Err(Error::Stats { path, source }),
        }
    }

    /// Writes it.
    pub fn write(mut self, stats: &Stats) -> Result<(), Error> {
        let json = serde_json::to_vec_pretty(&stats.json()).map_err(io::Error::from);
        let written = json.and_then(|json| self.file.write_all(&json));
        let path = self.path;
        written.map_err(|source| Error::Stats { path, source })
    }
}

fn copy<T: Clone>(of: &Mutex<T>) -> Mutex<T> {
    Mutex::new(of.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

/// A copy stays as it is, except that devices go on counting accesses to them in both.
impl Clone for Stats {
    fn clone(&self) -> Self {
        Self {
            phases_ns: copy(&self.phases_ns),
            last_mark: copy(&self.last_mark),
            exits: self.exits.clone(),
            wakeups: self.wakeups.clone(),
            devices: copy(&self.devices),
            counted: copy(&self.counted),
            traps: copy(&self.traps),
            unclaimed: self.unclaimed.clone(),
            kvm_ioctls: Calls(copy(&self.kvm_ioctls.0)),
            vfio_ioctls: Calls(copy(&self.vfio_ioctls.0)),
            ram_regions: self.ram_regions.clone(),
            reboots: self.reboots.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Null;

    impl DevicePio for Null {
        fn pio_read(&self, _: PioAddress, _: PioAddressOffset, _: &mut [u8]) {}
        fn pio_write(&self, _: PioAddress, _: PioAddressOffset, _: &[u8]) {}
    }

    #[test]
    fn the_json_has_what_its_readers_look_for() {
        let stats = Stats::default();
        for _ in 0..2 {
            stats.counted("serial", Null).pio_read(PioAddress(0x3f8), 5, &mut []);
        }
        stats.exits.total.add_one();
        stats.unclaimed.write(0x80);
        stats.unclaimed.write(0x80);
        stats.kvm_ioctls.add("create_vm", 2);
        stats.trapped("0000:01:00.0", "config_reads", 1);
        stats.trapped("0000:01:00.0", "config_reads", 2);
        stats.bar_heat("0000:01:00.0").at(0, 0x2fff);
        stats.interrupts("0000:01:00.0", "msix[0]", 3);
        stats.interrupts("0000:01:00.0", "msix[0]", 4);
        stats.phase("kvm");
        let file = tempfile::NamedTempFile::new().unwrap();
        StatsFile::create(file.path()).unwrap().write(&stats).unwrap();
        let json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(file.path()).unwrap()).unwrap();
        let numbers = [
            (&json["devices"]["serial"]["reads"], 2),
            (&json["devices"]["serial"]["by_address"]["0x3fd"], 2),
            (&json["devices"]["0000:01:00.0"]["bars"][0]["0x2000"], 1),
            (&json["devices"]["unclaimed"]["writes"], 2),
            (&json["devices"]["unclaimed"]["by_address"]["0x80"], 2),
            (&json["devices"]["0000:01:00.0"]["config_reads"], 3),
            (&json["devices"]["0000:01:00.0"]["interrupts"]["msix[0]"], 7),
            (&json["exits"]["total"], 1),
            (&json["exits"]["hlt"], 0),
            (&json["kvm_ioctls"]["create_vm"], 2),
            (&json["ram_regions"], 0),
        ];
        numbers.into_iter().for_each(|(value, expected)| assert_eq!(value, expected));
        assert!(json["phases_ns"]["kvm"].is_u64());
    }

    #[test]
    fn a_guest_that_goes_everywhere_does_not_fill_the_hosts_memory() {
        let heat = Heat::default();
        (0..2 * PLACES as u64).for_each(|place| heat.at(place));
        heat.at(0);
        let json = serde_json::to_value(&heat).unwrap();
        assert_eq!(json.as_object().unwrap().len(), PLACES);
        assert_eq!(json["0x0"], 2);
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let text = StatsFile::create("/nonexistent/stats.json").err().unwrap().to_string();
        assert!(text.starts_with("--stats /nonexistent/stats.json: "), "{text}");
    }
}
