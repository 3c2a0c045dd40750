//! The VMM's errors name what failed, why, and the command that remedies it.

use lab::protocol::{Ending, Request};
use lab::{Error, Guest, L1, place};

use crate::Test;
use crate::support::{NOBODY, VFIO, assert_parts, assigned};

pub const TESTS: &[Test] = &[
    ("error: reports a missing /dev/kvm", no_kvm),
    ("error: reports a missing /dev/vfio/vfio", no_vfio),
    ("error: reports a missing device", no_such_device),
    ("error: rejects a text that is no PCI address", not_an_address),
    ("error: reports a device on another driver", other_driver),
    ("error: reports a device without a driver", no_driver),
    ("error: reports a group that is not viable", not_viable),
    ("error: reports a busy group", busy),
    ("error: reports a missing kernel", no_kernel),
    ("error: rejects a file that is no kernel", not_a_kernel),
    ("error: reports a missing initrd", no_initrd),
    ("error: rejects an impossible memory size", impossible_memory),
    ("error: reports a low limit of locked memory", memlock),
];

/// Asserts that the VMM fails before the guest starts, with an error that has all of `parts`.
fn assert_error(l1: &mut L1, guest: &Guest, parts: &[&str]) -> Result<(), Error> {
    let outcome = guest.boot(l1)?;
    assert!(matches!(outcome.finished.ending, Ending::Status(1..)), "{}", outcome.details());
    assert!(outcome.stderr.starts_with("error: "), "{}", outcome.details());
    assert_parts(&outcome.stderr, parts);
    assert_eq!(outcome.console, "", "the guest has started");
    Ok(())
}

/// A guest without steps.
fn guest() -> Guest {
    Guest::new("end:off")
}

fn no_kvm(l1: &mut L1) -> Result<(), Error> {
    l1.rename("/dev/kvm", "/dev/kvm.away")?;
    assert_error(l1, &guest(), &["/dev/kvm", "modprobe kvm"])?;
    l1.rename("/dev/kvm.away", "/dev/kvm")
}

fn no_vfio(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    l1.rename("/dev/vfio/vfio", "/dev/vfio/away")?;
    assert_error(l1, &guest().device(&device), &["/dev/vfio/vfio", "modprobe vfio-pci"])?;
    l1.rename("/dev/vfio/away", "/dev/vfio/vfio")
}

fn no_such_device(l1: &mut L1) -> Result<(), Error> {
    let parts = ["0000:00:1e.0", "no such PCI device", "lspci -D"];
    assert_error(l1, &guest().device("0000:00:1e.0"), &parts)?;
    assert_error(l1, &guest().device("/sys/bus/pci/devices/0000:00:1e.0"), &parts)
}

fn not_an_address(l1: &mut L1) -> Result<(), Error> {
    assert_error(l1, &guest().device("nvme0"), &["nvme0", "0000:01:00.0"])
}

fn other_driver(l1: &mut L1) -> Result<(), Error> {
    let device = l1.machine().address(0);
    l1.bind(&device, Some("nvme"))?;
    let unbind = format!("echo {device} > /sys/bus/pci/devices/{device}/driver/unbind");
    let bind = format!("echo vfio-pci > /sys/bus/pci/devices/{device}/driver_override");
    let parts = [&device, "bound to nvme", "modprobe vfio-pci", &unbind, &bind, "drivers_probe"];
    assert_error(l1, &guest().device(&device), &parts)
}

fn no_driver(l1: &mut L1) -> Result<(), Error> {
    let device = l1.machine().address(0);
    l1.bind(&device, None)?;
    let parts = [&device, "no driver", "modprobe vfio-pci", "driver_override", "drivers_probe"];
    assert_error(l1, &guest().device(&device), &parts)
}

/// The host uses one of the NICs behind a bridge.
fn not_viable(l1: &mut L1) -> Result<(), Error> {
    let [ours, hosts] = ["0000:01:01.0", "0000:01:02.0"];
    l1.bind(ours, VFIO)?;
    l1.bind(hosts, Some("e1000"))?;
    let parts = [ours, "not viable", hosts, "e1000", "vfio-pci"];
    assert_error(l1, &guest().device(ours), &parts)?;
    l1.bind(hosts, VFIO)
}

/// A second VMM wants the device that the first one uses.
fn busy(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    let second = guest().device(&device).vmm_arguments();
    let first = Guest::new("pause:500").device(&device).run_at("\"report\":\"init\"", second);
    let outcome = first.boot(l1)?;
    assert!(outcome.is_success(), "the first VMM was disturbed\n{}", outcome.details());
    let parts = ["error: ", &device, "group", "EBUSY", "fuser -v /dev/vfio/"];
    assert_parts(&outcome.finished.sightings[0].said, &parts);
    Ok(())
}

fn no_kernel(l1: &mut L1) -> Result<(), Error> {
    assert_error(l1, &guest().kernel("/no/kernel"), &["kernel", "/no/kernel", "No such file"])
}

fn not_a_kernel(l1: &mut L1) -> Result<(), Error> {
    assert_error(l1, &guest().kernel(place::INITRD), &[place::INITRD, "not a kernel", "bzImage"])
}

fn no_initrd(l1: &mut L1) -> Result<(), Error> {
    assert_error(l1, &guest().initrd("/no/initrd"), &["initrd", "/no/initrd", "No such file"])
}

fn impossible_memory(l1: &mut L1) -> Result<(), Error> {
    for (size, why) in [
        ("0", "too small"),
        ("1M", "too small"),
        ("12X", "512M"),
        ("many", "512M"),
        ("1024000M", "this host has"),
    ] {
        assert_error(l1, &guest().memory(size), &["--memory", size, why])?;
    }
    Ok(())
}

/// The error has the needed limit in KiB, as `ulimit -l` takes it.
fn memlock(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    for path in ["/dev/kvm", "/dev/vfio"] {
        l1.perform(&Request::Own { path: path.into(), user: NOBODY })?;
    }
    let guest = guest().device(&device).limited(NOBODY, 64 << 10);
    assert_error(l1, &guest, &["RLIMIT_MEMLOCK", "ulimit -l 524288", "64 KiB"])
}
