//! Kernel and initramfs that are pipes, and where the initramfs lies.

use lab::{Error, Guest, L1, place};

use crate::Test;
use crate::layout::reserving;
use crate::support::{assert_refused, assigned, boot, counter};

/// On a machine with an NVMe first.
pub const TESTS: &[Test] = &[
    ("files: a guest boots and reboots from a kernel and an initrd in FIFOs", by_fifo),
    ("files: an initrd that does not fit below 2 GiB lies above 4 GiB", above_4_gib),
    ("files: names what is wrong with a kernel or an initrd", refused),
];

/// The VMM keeps what it read for the second boot.
fn by_fifo(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    let guest = Guest::new("hash:64K,reboots:1").memory("256M").device(&device).reboots();
    let outcome = boot(l1, &guest.kernel_by_fifo().initrd_by_fifo(0))?;
    assert_eq!(counter(&outcome, "/reboots"), 1, "{}", outcome.details());
    Ok(())
}

/// The group of the device seems to reserve most addresses below 4 GiB.
fn above_4_gib(l1: &mut L1) -> Result<(), Error> {
    const REGIONS: &str = "0x0c000000 0xbfffffff reserved\n";
    const ZEROS: u64 = 160 << 20;
    let device = assigned(l1, 0)?;
    let guest = Guest::new("hash:64K").command_line("console=ttyS0 panic=-1").device(&device);
    let guest = guest.memory("512M").initrd_by_fifo(ZEROS);
    let outcome = reserving(l1, &device, REGIONS, |l1| boot(l1, &guest))?;
    let line = outcome.console.lines().find(|line| line.contains("RAMDISK: [mem 0x"));
    let line = line.unwrap_or_else(|| panic!("no initrd\n{}", outcome.details()));
    assert!(line.contains("RAMDISK: [mem 0x1"), "{line}");
    Ok(())
}

fn refused(l1: &mut L1) -> Result<(), Error> {
    let guest = || Guest::new("end:off").memory("64M");
    let cases = [
        (guest().kernel("/l2"), vec!["kernel /l2: it is a folder", "give a file"]),
        (guest().initrd("/dev/zero"), vec!["initrd /dev/zero: it is a character device"]),
        (guest().kernel(place::INITRD), vec!["it is a cpio archive", "--initrd /l2/initrd"]),
        (guest().initrd_by_fifo(80 << 20), vec!["it has more than 64 MiB", "--memory"]),
    ];
    for (guest, parts) in cases {
        assert_refused(&guest.boot(l1)?, &parts);
    }
    Ok(())
}
