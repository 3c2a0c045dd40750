//! What the guest's init reports: the types, shared with the tests that read them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What stands before each report on the console.
pub const PREFIX: &str = "@guest ";

/// One line from the guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub enum Report {
    /// The init runs: in place of what it says of itself, where the command line has `guest.brief`. Each byte of a
    /// console is an exit, so whoever counts those up to here wants few.
    Up,
    /// The init runs.
    Init {
        /// Since the kernel's start, by its own clock.
        uptime_ns: u64,
        /// CPUs that are online, as the kernel lists them (`0-1`).
        cpus: String,
        /// `MemTotal`.
        memory_kib: u64,
    },
    /// The PCI functions that the guest sees.
    Pci {
        /// In the order of their addresses.
        functions: Vec<Function>,
    },
    /// SHA-256 over the start of a disk.
    Hash {
        /// The disk's name, `nvme0n1`.
        disk: String,
        /// How much of it was read.
        bytes: u64,
        /// In hexadecimal.
        sha256: String,
    },
    /// A pattern was written and read back.
    Write {
        /// The disk's name.
        disk: String,
        /// Where the pattern begins.
        offset: u64,
        /// Its length.
        bytes: u64,
        /// Whether what was read back is what was written.
        same: bool,
    },
    /// The guest listens to its power button, or has heard it.
    Button {
        /// Whether it was pressed.
        pressed: bool,
    },
    /// The edu device copies into memory, and goes on.
    Copies {
        /// How often it has done so.
        done: u64,
    },
    /// 4 KiB reads past the page cache.
    Read {
        /// The disk's name.
        disk: String,
        /// How many at a time, each by a thread of its own.
        depth: u64,
        /// How many.
        reads: u64,
        /// For all of them together.
        total_ns: u64,
        /// Half of them took at most this long.
        median_ns: u64,
        /// The slowest.
        worst_ns: u64,
        /// Interrupts that came during exactly these reads, by their name in `/proc/interrupts`.
        interrupts: BTreeMap<String, u64>,
    },
    /// All disks are being read, each over and over.
    Busy {
        /// How many.
        disks: usize,
    },
    /// A disk that was being read fails.
    Lost {
        /// The disk's name.
        disk: String,
        /// How many reads went well before.
        reads: u64,
        /// What the next one came to.
        error: String,
        /// How many disks have failed so far.
        lost: usize,
    },
    /// ARP requests to the network's router, one after the other.
    Net {
        /// The network interface, `eth0`.
        interface: String,
        /// How it interrupts: `intx`, `msi` or `msix`.
        kind: String,
        /// How many requests were sent.
        asked: u64,
        /// For all of them together.
        total_ns: u64,
        /// How many were answered.
        answered: u64,
        /// Interrupts that came meanwhile, by their name in `/proc/interrupts`.
        interrupts: BTreeMap<String, u64>,
    },
    /// USB devices that were found, root hubs aside.
    Usb {
        /// Vendor and product of each, `0627:0001`, in order.
        devices: Vec<String>,
        /// How each controller interrupts: `intx`, `msi` or `msix`.
        kinds: Vec<String>,
        /// Interrupts so far, by their name in `/proc/interrupts`.
        interrupts: BTreeMap<String, u64>,
    },
    /// How each PCI function with a driver interrupts.
    Interrupts {
        /// In the order of their addresses.
        functions: Vec<Interrupts>,
    },
    /// What an edu device did; everything ends with an interrupt.
    Edu {
        /// What it says it is.
        identification: u32,
        /// Of 10.
        factorial: u32,
        /// Whether a page that it read and wrote back is what it was.
        copied: bool,
        /// The same, after DMA to and from where no memory is.
        copied_after_straying: bool,
        /// How many came.
        interrupts: u64,
    },
    /// An edu's BAR was moved.
    Wander {
        /// What was not as it should be.
        wrong: Vec<String>,
    },
    /// An edu did DMA to the BAR of an ivshmem.
    P2p {
        /// What it did not reach.
        unreached: Vec<String>,
        /// When it changed what was not there for it.
        harmed: Vec<String>,
    },
    /// Decoding, power and resets of an NVMe were toggled.
    Toggle {
        /// How often decoding was.
        times: u64,
        /// What its first register says.
        value: u32,
        /// How often something else was read.
        wrong: u64,
        /// How often the other thread read meanwhile.
        reads: u64,
    },
    /// The machine is about to reboot.
    Reboot {
        /// For the how-many-th time.
        number: u8,
    },
    /// Something that takes long goes on.
    Progress {
        /// How often it was done.
        done: u64,
    },
    /// A BAR's memory was written and read back.
    Memory {
        /// Its size in bytes.
        size: u64,
        /// How many words were written, spread over it.
        words: u64,
        /// Whether they came back.
        same: bool,
    },
    /// Ports of a test device were written.
    Ports {
        /// The device's name for its test.
        name: String,
        /// How many right writes it counted.
        count: u32,
    },
    /// An expansion ROM.
    Rom {
        /// The function's address.
        address: String,
        /// How much of it holds images.
        bytes: u64,
        /// Over that, in hexadecimal.
        sha256: String,
    },
    /// A driver was taken from its device and given back, so many times.
    Rebind {
        /// The device's address.
        address: String,
        /// How often.
        times: u64,
    },
    /// A step failed.
    Error {
        /// The step and the reason.
        what: String,
    },
    /// The guest ends now.
    End {
        /// In this way.
        ending: Ending,
    },
}

/// A PCI function as sysfs shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Function {
    /// `0000:00:02.0`
    pub address: String,
    /// Vendor and device, `1b36:0010`.
    pub id: String,
    /// Class code, `010802`.
    pub class: String,
    /// The driver bound to it.
    pub driver: Option<String>,
    /// First and last address of each BAR in use, in order.
    pub bars: Vec<(u64, u64)>,
}

/// A PCI function's interrupts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interrupts {
    /// `0000:00:02.0`
    pub address: String,
    /// Its driver.
    pub driver: String,
    /// `intx`, `msi` or `msix`.
    pub kind: String,
    /// How many vectors the driver has.
    pub vectors: usize,
    /// How many came, over all vectors. Those of a line that others share are among them.
    pub count: u64,
}

/// How the guest ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// Power-off, by ACPI.
    Off,
    /// A restart. With `reboot=t` on the kernel's command line: a triple fault.
    Reboot,
    /// The init exits, on which the kernel panics.
    Panic,
}

/// The byte at `offset` of the pattern that the guest writes: differs between neighbouring bytes and
/// between neighbouring blocks, so a misplaced block shows.
#[must_use]
pub fn pattern_byte(offset: u64) -> u8 {
    let mixed = offset.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed.to_be_bytes().first().copied().unwrap_or_default()
}

/// The reports within a console's output, in order. Other lines are passed over.
#[must_use]
pub fn reports(console: &str) -> Vec<Report> {
    console
        .lines()
        .filter_map(|line| line.split_once(PREFIX))
        .filter_map(|(_, json)| serde_json::from_str(json.trim()).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_found_between_kernel_lines() {
        let end = serde_json::to_string(&Report::End { ending: Ending::Off }).unwrap();
        let console =
            format!("[    0.1] Linux\r\n{PREFIX}{end}\r\n[    0.2] reboot: Power down\r\n");
        assert_eq!(reports(&console), [Report::End { ending: Ending::Off }]);
    }

    #[test]
    fn a_torn_report_is_not_a_report() {
        assert_eq!(reports("@guest {\"report\":\"end\",\"endi"), []);
    }

    #[test]
    fn the_pattern_tells_blocks_apart() {
        let block = |start: u64| (start..start + 512).map(pattern_byte).collect::<Vec<_>>();
        assert_ne!(block(0), block(512));
        assert_ne!(block(0), block(4096));
    }
}
