//! The VMM ends with a defined status when its guest ends.

use lab::protocol::Ending;
use lab::{Error, Guest, L1};

use crate::Test;
use crate::held::is_bus_master;
use crate::support::{assigned, boot, counter};

pub const TESTS: &[Test] = &[
    ("power-off ends the VMM with status 0", power_off),
    ("a reboot ends the VMM with status 0", reboot),
    ("a device is reset once at each end of a guest", resets),
    ("a panic that reboots ends the VMM with status 0", panic),
    ("a triple fault is reported and ends the VMM with an error", triple_fault),
];

fn power_off(l1: &mut L1) -> Result<(), Error> {
    let outcome = boot(l1, &Guest::new("end:off"))?;
    assert_eq!(outcome.stderr, "", "the VMM prints no message");
    Ok(())
}

fn reboot(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    boot(l1, &Guest::new("read:10,end:reboot").device(&device)).map(|_| ())
}

/// The VMM resets the device when the guest reboots, and the kernel when the device is closed.
fn resets(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    let resets = |outcome| counter(&outcome, "/vfio_ioctls/reset");
    assert_eq!(resets(boot(l1, &Guest::new("read:10").device(&device))?), 0);
    let guest = Guest::new("read:10,reboots:1").device(&device).reboots();
    assert_eq!(resets(boot(l1, &guest)?), 1);
    assert!(!is_bus_master(l1, &device)?);
    Ok(())
}

fn panic(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    let outcome = boot(l1, &Guest::new("read:10,end:panic").device(&device))?;
    assert!(outcome.console.contains("Attempted to kill init"), "{}", outcome.details());
    Ok(())
}

/// `reboot=t` makes the guest's kernel reboot by a triple fault.
fn triple_fault(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    let guest = Guest::new("read:10,end:reboot").command_line("console=ttyS0 quiet reboot=t");
    let outcome = guest.device(&device).boot(l1)?;
    assert!(matches!(outcome.finished.ending, Ending::Status(1..)), "{}", outcome.details());
    assert!(outcome.stderr.contains("triple fault"), "{}", outcome.details());
    Ok(())
}
