//! Whatever keeps a guest from starting is told: what, which, why, and the command that mends it.

use lab::protocol::{Ending, Request};
use lab::{Error, Guest, L1, place};

use crate::Test;
use crate::support::{VFIO, assigned};

pub const TESTS: &[Test] = &[
    ("error: no /dev/kvm", no_kvm),
    ("error: no /dev/vfio/vfio", no_vfio),
    ("error: no such device", no_such_device),
    ("error: not a device's address", not_an_address),
    ("error: device bound to another driver", other_driver),
    ("error: device bound to no driver", no_driver),
    ("error: group not viable", not_viable),
    ("error: group busy", busy),
    ("error: no such kernel", no_kernel),
    ("error: the kernel is none", not_a_kernel),
    ("error: no such initrd", no_initrd),
    ("error: memory size impossible", impossible_memory),
    ("error: locked-memory limit too low", memlock),
];

/// A user without any capability.
const NOBODY: u32 = 65534;

/// The VMM must fail, and its message must have all of `parts`.
fn assert_error(l1: &mut L1, guest: &Guest, parts: &[&str]) -> Result<(), Error> {
    let outcome = guest.boot(l1)?;
    assert!(matches!(outcome.finished.ending, Ending::Status(1..)), "{}", outcome.account());
    assert!(outcome.stderr.starts_with("error: "), "{}", outcome.account());
    for part in parts {
        assert!(outcome.stderr.contains(part), "no {part:?} in:\n{}", outcome.account());
    }
    assert_eq!(outcome.console, "", "the guest has not begun");
    Ok(())
}

/// A guest that would do nothing.
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

/// Of two NICs behind one bridge, one is the host's.
fn not_viable(l1: &mut L1) -> Result<(), Error> {
    let [ours, hosts] = ["0000:01:01.0", "0000:01:02.0"];
    l1.bind(ours, VFIO)?;
    l1.bind(hosts, Some("e1000"))?;
    let parts = [ours, "not viable", hosts, "e1000", "vfio-pci"];
    assert_error(l1, &guest().device(ours), &parts)?;
    l1.bind(hosts, VFIO)
}

/// Another VMM has the device.
fn busy(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    let second = guest().device(&device).vmm_arguments();
    let first = Guest::new("pause:500").device(&device).run_at("\"report\":\"init\"", second);
    let outcome = first.boot(l1)?;
    assert!(outcome.is_success(), "the first is not disturbed\n{}", outcome.account());
    let said = &outcome.finished.sightings[0].said;
    for part in ["error: ", &device, "group", "EBUSY", "fuser -v /dev/vfio/"] {
        assert!(said.contains(part), "no {part:?} in:\n{said}");
    }
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

/// The message has the value that is needed, in KiB as `ulimit -l` takes it.
fn memlock(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    for path in ["/dev/kvm", "/dev/vfio"] {
        l1.tell(&Request::Own { path: path.into(), user: NOBODY })?;
    }
    let guest = guest().device(&device).limited(NOBODY, 64 << 10);
    assert_error(l1, &guest, &["RLIMIT_MEMLOCK", "ulimit -l 524288", "64 KiB"])
}
