//! What is mapped for DMA, while a guest runs and after its end.

use lab::protocol::{Ending, Sighting};
use lab::{Error, Guest, L1};

use crate::Test;
use crate::support::{assigned, boot, boot_with_nvme, counter};

pub const TESTS: &[Test] = &[
    ("one MAP_DMA a RAM region", one_map_a_region),
    (
        "nothing stays mapped or pinned after the end",
        nothing_stays_after_the_end,
    ),
    (
        "nothing stays mapped or pinned after SIGKILL",
        nothing_stays_after_a_kill,
    ),
];

/// The guest's RAM.
const RAM_KIB: u64 = 512 << 10;

const INIT: &str = "\"report\":\"init\"";
const HASH: &str = "\"report\":\"hash\"";
const VMSTAT: &str = "/proc/vmstat";
/// The kernel counts per CPU and sums up once a second; reading this makes it do so at once.
const REFRESH: &str = "/proc/sys/vm/stat_refresh";
const STATUS: &str = "/proc/{pid}/status";

fn one_map_a_region(l1: &mut L1) -> Result<(), Error> {
    let outcome = boot_with_nvme(l1, "look")?;
    let regions = counter(&outcome, "/ram_regions");
    assert!(regions > 0, "{}", outcome.account());
    assert_eq!(
        counter(&outcome, "/vfio_ioctls/map_dma"),
        regions,
        "{}",
        outcome.account()
    );
    Ok(())
}

fn nothing_stays_after_the_end(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    let before = Held::now(l1)?;
    let guest = Guest::new("pause:100,hash:4M")
        .device(&device)
        .look_at(INIT, &[REFRESH, VMSTAT, STATUS]);
    let outcome = boot(l1, &guest)?;
    assert_held(&outcome.finished.sightings[0], &before);
    assert_eq!(Held::now(l1)?, before);
    assert!(!is_bus_master(l1, &device)?, "{device} may still do DMA");
    Ok(())
}

/// In the middle of reads; and the device works for the next guest at once.
fn nothing_stays_after_a_kill(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    let before = Held::now(l1)?;
    let guest = Guest::new("hash:4M,read:100000").device(&device);
    let killed = guest
        .look_at(INIT, &[REFRESH, VMSTAT, STATUS])
        .kill_at(HASH)
        .boot(l1)?;
    assert_eq!(killed.finished.ending, Ending::Signal(9), "{}", killed.account());
    assert_held(&killed.finished.sightings[0], &before);
    assert_eq!(Held::now(l1)?, before);
    assert!(!is_bus_master(l1, &device)?, "{device} may still do DMA");
    boot(l1, &Guest::new("hash:4M").device(&device)).map(|_| ())
}

/// What L1's kernel holds for all its users of VFIO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    /// Pages pinned for DMA and not yet given back (`pin_user_pages`, counted since Linux 5.7).
    pinned_pages: u64,
    /// Pages that the IOMMU's tables take (since 6.11); they go with the mappings.
    table_pages: Option<u64>,
}

impl Held {
    fn now(l1: &mut L1) -> Result<Self, Error> {
        l1.read(REFRESH)?;
        Ok(Self::of(&l1.read(VMSTAT)?))
    }

    fn of(vmstat: &str) -> Self {
        let value = |name: &str| field(vmstat, name);
        let pins = |name: &str| value(name).unwrap_or_else(|| panic!("no {name} in {vmstat}"));
        Self {
            pinned_pages: pins("nr_foll_pin_acquired") - pins("nr_foll_pin_released"),
            table_pages: value("nr_iommu_pages"),
        }
    }
}

/// While the guest ran, its RAM was pinned, mapped, and counted against the process's limit: what is looked
/// for after the end can be seen.
fn assert_held(seen: &Sighting, before: &Held) {
    let during = Held::of(&seen.files[VMSTAT]);
    let ram_pages = RAM_KIB / 4;
    assert!(
        during.pinned_pages >= before.pinned_pages + ram_pages,
        "{during:?} {before:?}"
    );
    assert!(
        during.table_pages.is_none() || during.table_pages > before.table_pages,
        "{during:?} {before:?}"
    );
    let locked_kib = field(&seen.files[STATUS], "VmLck:").unwrap();
    assert!(locked_kib >= RAM_KIB, "{locked_kib} KiB locked");
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text
        .lines()
        .find(|line| line.split_whitespace().next() == Some(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Bit 2 of the command register (PCI Local Bus 3.0, 6.2.2), by the kernel's own view of the device.
fn is_bus_master(l1: &mut L1, device: &str) -> Result<bool, Error> {
    let config = l1.read(&format!("/sys/bus/pci/devices/{device}/config"))?;
    // Vendor, device and command of QEMU's NVMe are all below 0x80, so they survive as text.
    Ok(config.as_bytes()[4] & 1 << 2 != 0)
}
