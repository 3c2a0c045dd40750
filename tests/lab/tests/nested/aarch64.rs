//! The tests on arm64: those of a PC that have a meaning there, on hosts with pages of 4 and of
//! 16 KiB. (Debian has no arm64 kernel with pages of 64 KiB.)

use lab::{Device, Kernel, LANES, Machine};

use crate::{Group, Test};
use crate::{conformance, control, data, devices, endings, examples, host, mappings, shapes};

/// Two NVMes, an e1000e and the conventional NICs. There is no bridge to conventional PCI: its
/// devices have one requester ID, and 6.12's driver of the SMMUv3 takes the first one only.
const DEVICES: &[Device] =
    &[Device::Nvme, Device::Nvme, Device::E1000e, Device::Rtl8139, Device::Ne2k];

/// The tests on [`DEVICES`] by name, in addition to whole lists.
const NAMED: &[&str] = &[
    "a guest boots without a device",
    "two NVMes of two groups work in one guest",
    "a guest runs on two vCPUs",
    "power-off ends the VMM with status 0",
    "a reboot ends the VMM with status 0",
    "a device is reset once at each end of a guest",
    "a panic that reboots ends the VMM with status 0",
    "each RAM region takes one call to map it",
    "nothing stays mapped or pinned after the end",
    "nothing stays mapped or pinned after SIGKILL",
    "an NVMe works with MSI-X",
    "an e1000e works with MSI-X",
    "control: pauses a guest during I/O, and presses its power button",
    "an rtl8139 and an ne2k work with INTx, the ne2k by its I/O BAR only",
];

/// Those for hosts with pages of 4 KiB.
const NAMED_OF_4K: &[&str] = &[
    "conformance: model and kernel agree on all checks and 2000 random sequences",
    "conformance: model and kernel agree on a limit of locked memory",
];

/// Those on devices behind ports. L1's kernel does not answer a port's request to unplug a device.
const NAMED_ON_PORTS: &[&str] = &[
    "host: the host unbinds devices during I/O",
    "host: a guest reboots without a device that the host has unbound",
];

/// The lists of a PC in which the named tests are.
const LISTS: &[&[Test]] = &[
    shapes::TESTS,
    endings::TESTS,
    mappings::TESTS,
    devices::TESTS,
    host::TESTS,
    conformance::TESTS,
    control::TESTS,
];

/// Pages of 4 KiB in the first lane, of 16 KiB in the second.
pub fn lanes() -> [Vec<Group>; LANES] {
    [
        on(["aarch64 6.12", "aarch64 6.12, ports"], Kernel::Arm612),
        on(["aarch64 6.12-16k", "aarch64 6.12-16k, ports"], Kernel::Arm612Of16K),
    ]
}

fn on([name, name_of_ports]: [&'static str; 2], kernel: Kernel) -> Vec<Group> {
    let own = [examples::TESTS, data::TESTS, shapes::UP_TO_8_CPUS].concat();
    // The conformance program and its model know pages of 4 KiB only.
    let conforms = if kernel == Kernel::Arm612 { NAMED_OF_4K } else { &[] };
    let machine = |devices| Machine::new(kernel).devices(devices);
    vec![
        (name, machine(DEVICES), [own, named(NAMED), named(conforms)].concat()),
        (name_of_ports, machine(host::DEVICES), named(NAMED_ON_PORTS)),
    ]
}

fn named(names: &[&str]) -> Vec<Test> {
    let find = |name: &&str| {
        let test = LISTS.iter().copied().flatten().find(|(own, _)| own == name);
        *test.unwrap_or_else(|| panic!("no list has the test {name:?}"))
    };
    names.iter().map(find).collect()
}
