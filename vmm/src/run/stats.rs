//! Counters of a running guest, and the duration of its start. `--stats` writes them as JSON.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::counters::{Accesses, Calls, Count, DeviceCounts, FunctionCounts};
use crate::error::Error;

/// Exits to userspace, by reason.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Exits {
    /// All exits.
    pub(crate) total: Count,
    /// Port reads.
    pub(crate) io_in: Count,
    /// Port writes.
    pub(crate) io_out: Count,
    /// MMIO reads.
    pub(crate) mmio_read: Count,
    /// MMIO writes.
    pub(crate) mmio_write: Count,
    /// Halts; in-kernel local APICs cause none.
    pub(crate) hlt: Count,
    /// All other exits, such as signals.
    pub(crate) other: Count,
    /// Coalesced writes, which arrive with another exit (see [`crate::passthrough::coalesced`]). No
    /// other counter includes them.
    pub(crate) coalesced: Count,
}

/// The duration of each phase of the start.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Phases {
    nanoseconds: Mutex<BTreeMap<&'static str, u64>>,
    #[serde(skip)]
    last_mark: Mutex<Instant>,
}

impl Default for Phases {
    fn default() -> Self {
        Self { nanoseconds: Mutex::default(), last_mark: Mutex::new(Instant::now()) }
    }
}

impl Phases {
    fn end(&self, name: &'static str) {
        let now = Instant::now();
        let mut last = self.last_mark.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = u64::try_from(now.duration_since(*last).as_nanos()).unwrap_or(u64::MAX);
        *last = now;
        let mut phases = self.nanoseconds.lock().unwrap_or_else(PoisonError::into_inner);
        phases.entry(name).or_insert(passed);
    }
}

impl Clone for Phases {
    fn clone(&self) -> Self {
        let nanoseconds = self.nanoseconds.lock().unwrap_or_else(PoisonError::into_inner);
        let last_mark = self.last_mark.lock().unwrap_or_else(PoisonError::into_inner);
        Self { nanoseconds: Mutex::new(nanoseconds.clone()), last_mark: Mutex::new(*last_mark) }
    }
}

/// Accesses to devices, by device name.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct DeviceStats {
    /// Accesses to the guest's fixed devices.
    #[serde(flatten)]
    pub(crate) fixed: DeviceCounts,
    /// Accesses to assigned functions.
    #[serde(flatten)]
    pub(crate) functions: FunctionCounts,
    /// Accesses to addresses without a device.
    pub(crate) unclaimed: Accesses,
}

/// The kernel's interface for the devices, type1 or iommufd; null without devices.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interface(OnceLock<&'static str>);

impl Interface {
    /// Sets the interface, which stays the same in all lives of the guest.
    pub(crate) fn set(&self, name: &'static str) {
        // A second life sets the same name.
        let _ = self.0.set(name);
    }
}

impl Serialize for Interface {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.get().serialize(serializer)
    }
}

/// All counters. A copy is a snapshot, except that both copies share the counters of devices.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Stats {
    phases_ns: Phases,
    /// Exits to userspace.
    pub(crate) exits: Exits,
    /// Wake-ups of the main thread, for any event.
    pub(crate) wakeups: Count,
    /// Accesses to devices.
    pub(crate) devices: DeviceStats,
    /// Ioctls on KVM.
    pub(crate) kvm_ioctls: Calls,
    /// The interface for the devices, as `vm.info` names it.
    pub(crate) iommu: Interface,
    /// Ioctls on VFIO.
    pub(crate) vfio_ioctls: Calls,
    /// Regions of RAM; with an assigned device each has one DMA mapping.
    pub(crate) ram_regions: Count,
    /// Reboots of the guest.
    pub(crate) reboots: Count,
    /// What a running guest holds.
    pub(crate) in_use: InUse,
}

/// Numbers of the VM that are in use now; 0 when the guest has ended.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct InUse {
    /// Memory slots of KVM.
    pub(crate) memory_slots: u32,
    /// GSIs of interrupt vectors.
    pub(crate) gsis: u32,
}

impl Stats {
    /// Ends a phase: its duration is the time since the end of the previous phase. Only the first
    /// life of the guest counts.
    pub(crate) fn phase(&self, name: &'static str) {
        self.phases_ns.end(name);
    }

    /// All counters as JSON.
    pub(crate) fn json(&self) -> Value {
        // All keys are strings, so the conversion cannot fail.
        serde_json::to_value(self).unwrap_or_default()
    }
}

/// The file of `--stats`, written at the end. The VMM opens it at the start, because a running VMM
/// may not open files.
pub(crate) struct StatsFile {
    path: PathBuf,
    file: File,
}

impl StatsFile {
    /// Creates or truncates the file at `path`.
    pub(crate) fn create(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref().to_owned();
        match File::create(&path) {
            Ok(file) => Ok(Self { path, file }),
            Err(source) => Err(Error::Stats { path, source }),
        }
    }

    /// Writes the counters.
    pub(crate) fn write(mut self, stats: &Stats) -> Result<(), Error> {
        let json = serde_json::to_vec_pretty(&stats.json()).map_err(io::Error::from);
        let written = json.and_then(|json| self.file.write_all(&json));
        let path = self.path;
        written.map_err(|source| Error::Stats { path, source })
    }
}

#[cfg(test)]
mod tests {
    use vm_device::DevicePio;
    use vm_device::bus::{PioAddress, PioAddressOffset};

    use super::*;

    struct Null;

    impl DevicePio for Null {
        fn pio_read(&self, _: PioAddress, _: PioAddressOffset, _: &mut [u8]) {}
        fn pio_write(&self, _: PioAddress, _: PioAddressOffset, _: &[u8]) {}
    }

    #[test]
    fn the_json_has_the_documented_counters() {
        let stats = Stats::default();
        for _ in 0..2 {
            stats.devices.fixed.counted("serial", Null).pio_read(PioAddress(0x3f8), 5, &mut []);
        }
        stats.exits.total.add_one();
        stats.devices.unclaimed.write(0x80);
        stats.devices.unclaimed.write(0x80);
        stats.kvm_ioctls.add("create_vm", 2);
        stats.devices.functions.trapped("0000:01:00.0", "config_reads", 1);
        stats.devices.functions.trapped("0000:01:00.0", "config_reads", 2);
        stats.devices.functions.bars("0000:01:00.0").at(0, 0x2fff);
        stats.devices.functions.interrupts("0000:01:00.0", "msix[0]", 3);
        stats.devices.functions.interrupts("0000:01:00.0", "msix[0]", 4);
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
            (&json["in_use"]["memory_slots"], 0),
            (&json["in_use"]["gsis"], 0),
        ];
        numbers.into_iter().for_each(|(value, expected)| assert_eq!(value, expected));
        assert!(json["phases_ns"]["kvm"].is_u64());
    }

    #[test]
    fn names_a_stats_file_that_cannot_be_created() {
        let text = StatsFile::create("/nonexistent/stats.json").err().unwrap().to_string();
        assert!(text.starts_with("--stats /nonexistent/stats.json: "), "{text}");
    }
}
