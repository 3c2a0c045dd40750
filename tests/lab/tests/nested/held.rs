//! The memory that L1's kernel holds for users of VFIO, and the bus mastering of devices.

use lab::{Error, L1};

/// The file of the kernel's page counters.
pub const VMSTAT: &str = "/proc/vmstat";
/// A read of this file makes the kernel sum up the counters of all CPUs at once. Otherwise it does
/// so once in a second.
pub const REFRESH: &str = "/proc/sys/vm/stat_refresh";

/// The pages that L1's kernel holds for all users of VFIO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The pages that are pinned (`pin_user_pages`, counted since Linux 5.7).
    pub pinned_pages: u64,
    /// The pages of the IOMMU's tables (counted since 6.11). The kernel frees them with the
    /// mappings.
    pub table_pages: Option<u64>,
}

impl Held {
    pub fn now(l1: &mut L1) -> Result<Self, Error> {
        l1.read(REFRESH)?;
        Ok(Self::of(&l1.read(VMSTAT)?))
    }

    pub fn of(vmstat: &str) -> Self {
        let value = |name: &str| field(vmstat, name);
        let pins = |name: &str| value(name).unwrap_or_else(|| panic!("no {name} in {vmstat}"));
        Self {
            pinned_pages: pins("nr_foll_pin_acquired") - pins("nr_foll_pin_released"),
            table_pages: value("nr_iommu_pages"),
        }
    }
}

/// The number that follows `name` on the line that begins with `name`.
pub fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Whether a device is a bus master: bit 2 of the command register (PCI 3.0, 6.2.2), read in L1.
pub fn is_bus_master(l1: &mut L1, device: &str) -> Result<bool, Error> {
    let config = l1.read(&format!("/sys/bus/pci/devices/{device}/config"))?;
    // Each byte is one character: the agent replaces bytes that are not UTF-8. The low byte of the
    // command register is at offset 4, and below 0x80.
    let command = config.chars().nth(4).map_or(u32::MAX, u32::from);
    Ok(command & 1 << 2 != 0)
}
