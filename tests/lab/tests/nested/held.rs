//! What L1's kernel holds for those who use its devices, and what it says of them.

use lab::{Error, L1};

/// The kernel's counters of pages.
pub const VMSTAT: &str = "/proc/vmstat";
/// The kernel counts per CPU and sums up once a second; reading this makes it do so at once.
pub const REFRESH: &str = "/proc/sys/vm/stat_refresh";

/// What L1's kernel holds for all its users of VFIO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Pages pinned for DMA and not yet given back (`pin_user_pages`, counted since Linux 5.7).
    pub pinned_pages: u64,
    /// Pages that the IOMMU's tables take (since 6.11); they go with the mappings.
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

/// The number behind a name at the start of a line.
pub fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Bit 2 of the command register (PCI Local Bus 3.0, 6.2.2), by the kernel's own view of the device.
pub fn is_bus_master(l1: &mut L1, device: &str) -> Result<bool, Error> {
    let config = l1.read(&format!("/sys/bus/pci/devices/{device}/config"))?;
    // A byte that is no text is one replacement character, so the command is the fifth; it is below 0x80.
    let command = config.chars().nth(4).map_or(u32::MAX, u32::from);
    Ok(command & 1 << 2 != 0)
}
