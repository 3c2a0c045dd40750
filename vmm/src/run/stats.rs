//! What is counted while a guest runs, and how long its start took. Written as JSON by `--stats`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde::Serialize;
use serde_json::Value;

use crate::counters::{Accesses, Calls, Count, DeviceCounts, FunctionCounts};
use crate::error::Error;

/// Exits to userspace, by reason.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Exits {
    /// All of them.
    pub(crate) total: Count,
    /// Reads of ports.
    pub(crate) io_in: Count,
    /// Writes of ports.
    pub(crate) io_out: Count,
    /// Reads of memory that is not RAM.
    pub(crate) mmio_read: Count,
    /// Writes of memory that is not RAM.
    pub(crate) mmio_write: Count,
    /// Halts; none with in-kernel local APICs.
    pub(crate) hlt: Count,
    /// All else, such as signals.
    pub(crate) other: Count,
    /// Coalesced writes, which came with another exit: see [`crate::passthrough::coalesced`]. They
    /// are in no other count of exits.
    #[serde(rename = "posted")]
    pub(crate) coalesced: Count,
}

/// How long each phase of the start took.
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

/// Accesses to devices, by the devices' names.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct DeviceStats {
    /// To the guest's fixed devices.
    #[serde(flatten)]
    pub(crate) fixed: DeviceCounts,
    /// To assigned functions.
    #[serde(flatten)]
    pub(crate) functions: FunctionCounts,
    /// To no device.
    pub(crate) unclaimed: Accesses,
}

/// Everything that is counted. A copy stays as it is, except that devices go on counting accesses
/// to them in both.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Stats {
    phases_ns: Phases,
    /// Exits to userspace.
    pub(crate) exits: Exits,
    /// How often the main thread woke up, for whatever it waits for.
    pub(crate) wakeups: Count,
    /// Accesses to devices.
    pub(crate) devices: DeviceStats,
    /// Calls of KVM.
    pub(crate) kvm_ioctls: Calls,
    /// Calls of VFIO.
    pub(crate) vfio_ioctls: Calls,
    /// Regions of RAM: as many DMA mappings are made with a device assigned.
    pub(crate) ram_regions: Count,
    /// How often the guest was booted again.
    pub(crate) reboots: Count,
}

impl Stats {
    /// Ends a phase of the start: what passed since the last one ended is its time. A phase that
    /// comes again when the guest reboots is not counted again.
    pub(crate) fn phase(&self, name: &'static str) {
        self.phases_ns.end(name);
    }

    /// Everything, as JSON.
    pub(crate) fn json(&self) -> Value {
        // All keys are strings, and nothing here fails to be written.
        serde_json::to_value(self).unwrap_or_default()
    }
}

/// Where everything is written at the end, as JSON. It is opened at the start: no file is opened
/// while a guest runs.
pub(crate) struct StatsFile {
    path: PathBuf,
    file: File,
}

impl StatsFile {
    /// The file at `path`, which is empty from now on.
    pub(crate) fn create(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref().to_owned();
        match File::create(&path) {
            Ok(file) => Ok(Self { path, file }),
            Err(source) => Err(Error::Stats { path, source }),
        }
    }

    /// Writes it.
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
    fn the_json_has_what_its_readers_look_for() {
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
        ];
        numbers.into_iter().for_each(|(value, expected)| assert_eq!(value, expected));
        assert!(json["phases_ns"]["kvm"].is_u64());
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let text = StatsFile::create("/nonexistent/stats.json").err().unwrap().to_string();
        assert!(text.starts_with("--stats /nonexistent/stats.json: "), "{text}");
    }
}
