//! The reports of the guest's init, as types that init and tests share.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The text before each report on the console.
pub const PREFIX: &str = "@guest ";

/// One report of the guest: one line of its console.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub enum Report {
    /// The init has started, and the command line has `guest.brief`. Each byte on the console is an
    /// exit, so benchmarks that count exits want this short report.
    Up,
    /// The init has started.
    Init {
        /// The time since the kernel's start, by the guest's clock.
        uptime_ns: u64,
        /// The online CPUs, as the kernel lists them (`0-1`).
        cpus: String,
        /// `MemTotal` of `/proc/meminfo`.
        memory_kib: u64,
    },
    /// The PCI functions that the guest sees.
    Pci {
        /// The functions, in the order of their addresses.
        functions: Vec<Function>,
    },
    /// The SHA-256 of the start of a disk.
    Hash {
        /// The disk's name, such as `nvme0n1`.
        disk: String,
        /// The number of bytes hashed.
        bytes: u64,
        /// The hash in hexadecimal.
        sha256: String,
    },
    /// A pattern was written and read back.
    Write {
        /// The disk's name.
        disk: String,
        /// The offset of the pattern on the disk.
        offset: u64,
        /// The length of the pattern.
        bytes: u64,
        /// Whether the data read back equals the data written.
        same: bool,
    },
    /// A serial line looped bytes back.
    Serial {
        /// The line's name, such as `ttyS4`.
        line: String,
        /// The number of bytes sent.
        bytes: u64,
        /// Whether the same bytes came back.
        same: bool,
    },
    /// A point in the plan.
    Mark {
        /// The number in the plan.
        number: u64,
    },
    /// A disk came, and its start was read.
    Visit {
        /// The number of this visit, from 1 on.
        number: u64,
        /// The SHA-256 of the start of the disk, in hexadecimal.
        sha256: String,
    },
    /// All disks that came have left. Meanwhile the guest read from another disk.
    Visited {
        /// The number of reads of the other disk.
        reads: u64,
        /// The number of these reads that failed or returned other data than before.
        wrong: u64,
    },
    /// The guest waits for its power button, or the button was pressed.
    Button {
        /// Whether it was pressed.
        pressed: bool,
    },
    /// The edu device copies into memory, and continues.
    Copies {
        /// The number of finished copies.
        done: u64,
    },
    /// Reads of 4 KiB with O_DIRECT.
    Read {
        /// The disk's name.
        disk: String,
        /// The number of threads, each of which has one read in flight.
        depth: u64,
        /// The number of reads.
        reads: u64,
        /// The time of all reads together.
        total_ns: u64,
        /// The median time of a read.
        median_ns: u64,
        /// The time of the slowest read.
        worst_ns: u64,
        /// The interrupts during these reads, by name in `/proc/interrupts`.
        interrupts: BTreeMap<String, u64>,
    },
    /// The guest reads from all disks.
    Busy {
        /// The number of disks.
        disks: usize,
    },
    /// A read of a disk failed.
    Lost {
        /// The disk's name.
        disk: String,
        /// The number of reads that succeeded before.
        reads: u64,
        /// The error of the read that failed.
        error: String,
        /// The number of disks that have failed so far.
        lost: usize,
    },
    /// ARP requests to the network's router, one after the other.
    Net {
        /// The network interface, such as `eth0`.
        interface: String,
        /// How the NIC interrupts: `intx`, `msi` or `msix`.
        kind: String,
        /// The number of requests sent.
        asked: u64,
        /// The time of all requests together.
        total_ns: u64,
        /// The number of requests answered.
        answered: u64,
        /// The interrupts during the requests, by name in `/proc/interrupts`.
        interrupts: BTreeMap<String, u64>,
    },
    /// The USB devices, without root hubs.
    Usb {
        /// Vendor and product ID of each device, such as `0627:0001`, sorted.
        devices: Vec<String>,
        /// How each controller interrupts: `intx`, `msi` or `msix`.
        kinds: Vec<String>,
        /// The interrupts so far, by name in `/proc/interrupts`.
        interrupts: BTreeMap<String, u64>,
    },
    /// The interrupts of each PCI function that has a driver.
    Interrupts {
        /// The functions, in the order of their addresses.
        functions: Vec<Interrupts>,
    },
    /// The edu device worked; each operation ended with an interrupt.
    Edu {
        /// The value of its identification register.
        identification: u32,
        /// The factorial of 10, as the device computed it.
        factorial: u32,
        /// Whether a page kept its contents when the device read it and wrote it back.
        copied: bool,
        /// The same, after DMA at an unmapped address.
        copied_after_straying: bool,
        /// The number of interrupts.
        interrupts: u64,
    },
    /// The edu device's BAR was moved.
    Wander {
        /// The expectations that did not hold.
        wrong: Vec<String>,
    },
    /// The edu device did DMA to a BAR of another device.
    P2p {
        /// The accesses that should have reached the BAR and did not.
        unreached: Vec<String>,
        /// The accesses that should not have reached the BAR and did.
        harmed: Vec<String>,
    },
    /// Decoding and the power state of an NVMe were toggled, and it was reset.
    Toggle {
        /// The number of times that decoding went off and on.
        times: u64,
        /// The value of the NVMe's first register.
        value: u32,
        /// The number of reads that returned a wrong value.
        wrong: u64,
        /// The number of reads of the other thread.
        reads: u64,
    },
    /// The guest is about to reboot.
    Reboot {
        /// The number of this reboot, from 1 on.
        number: u8,
    },
    /// A long step continues.
    Progress {
        /// The number of repetitions done.
        done: u64,
    },
    /// A BAR's memory was written and read back.
    Memory {
        /// The size of the memory in bytes.
        size: u64,
        /// The number of words written.
        words: u64,
        /// Whether all words were read back as written.
        same: bool,
    },
    /// Ports of a test device were written.
    Ports {
        /// The device's name for the test.
        name: String,
        /// The number of correct writes that the device counted.
        count: u32,
    },
    /// The expansion ROM of a function.
    Rom {
        /// The function's address.
        address: String,
        /// The size of the ROM's images in bytes.
        bytes: u64,
        /// The SHA-256 of these bytes, in hexadecimal.
        sha256: String,
    },
    /// Data went through a device that is no disk, network or serial line.
    Trial {
        /// The name of the trial, as in the plan.
        name: String,
        /// What came of it, for the test to judge.
        result: String,
    },
    /// A driver was unbound from a device and bound again.
    Rebind {
        /// The device's address.
        address: String,
        /// The number of repetitions.
        times: u64,
    },
    /// A step failed.
    Error {
        /// The text of the error.
        what: String,
    },
    /// The guest is about to end.
    End {
        /// How it ends.
        ending: Ending,
    },
}

/// A PCI function, from sysfs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Function {
    /// The address, such as `0000:00:02.0`.
    pub address: String,
    /// Vendor and device ID, such as `1b36:0010`.
    pub id: String,
    /// The class code, such as `010802`.
    pub class: String,
    /// The driver that the function is bound to.
    pub driver: Option<String>,
    /// First and last address of each BAR with an address, in order.
    pub bars: Vec<(u64, u64)>,
}

/// The interrupts of a PCI function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interrupts {
    /// The address, such as `0000:00:02.0`.
    pub address: String,
    /// The driver that the function is bound to.
    pub driver: String,
    /// The kind: `intx`, `msi` or `msix`.
    pub kind: String,
    /// The number of vectors that the driver has.
    pub vectors: usize,
    /// The number of interrupts over all vectors. On a shared line, those of other devices count
    /// too.
    pub count: u64,
}

/// How the guest ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// It powers off by ACPI.
    Off,
    /// It restarts; by a triple fault if the kernel's command line has `reboot=t`.
    Reboot,
    /// Its init exits, so the kernel panics.
    Panic,
}

/// The byte at `offset` of the pattern that the guest writes. It differs between neighbouring bytes
/// and between neighbouring blocks, so tests notice a misplaced block.
#[must_use]
pub fn pattern_byte(offset: u64) -> u8 {
    let mixed = offset.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed.to_be_bytes().first().copied().unwrap_or_default()
}

/// The reports within the output of a console, in order. Other lines are ignored, and so is what the
/// kernel prints before and after a report on its line.
#[must_use]
pub fn reports(console: &str) -> Vec<Report> {
    let first = |json| serde_json::Deserializer::from_str(json).into_iter().next();
    console
        .lines()
        .filter_map(|line| line.split_once(PREFIX))
        .filter_map(|(_, json)| first(json)?.ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_reports_between_kernel_lines() {
        let end = serde_json::to_string(&Report::End { ending: Ending::Off }).unwrap();
        let console =
            format!("[    0.1] Linux\r\n{PREFIX}{end}\r\n[    0.2] reboot: Power down\r\n");
        assert_eq!(reports(&console), [Report::End { ending: Ending::Off }]);
    }

    #[test]
    fn finds_a_report_amid_a_line_of_the_kernel() {
        let end = serde_json::to_string(&Report::End { ending: Ending::Off }).unwrap();
        let console = format!("[    0.1] Li{PREFIX}{end}[    0.2] reboot: Power down\r\n\r\n");
        assert_eq!(reports(&console), [Report::End { ending: Ending::Off }]);
    }

    #[test]
    fn ignores_an_incomplete_report() {
        assert_eq!(reports("@guest {\"report\":\"end\",\"endi"), []);
    }

    #[test]
    fn pattern_differs_between_blocks() {
        let block = |start: u64| (start..start + 512).map(pattern_byte).collect::<Vec<_>>();
        assert_ne!(block(0), block(512));
        assert_ne!(block(0), block(4096));
    }
}
