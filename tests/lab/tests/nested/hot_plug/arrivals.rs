//! Each kind of device comes to a running guest, works there, and leaves.

use guest::Report;
use lab::protocol::Request;
use lab::{Device, Error, Guest, L1, Outcome, VFS, sha256};

use super::{INIT, add, assert_came, assert_left, guest, in_turn, mark, remove, sightings};
use crate::Test;
use crate::devices::ONE_DISK_EACH;
use crate::held::{Held, is_bus_master};
use crate::support::{VFIO, assigned, boot, hashes, take};

/// On machines with an NVMe first, and a shared group.
pub const TESTS: &[Test] = &[
    ("hot-plug: an NVMe comes, works and leaves", nvme),
    ("hot-plug: three NICs of a group come together, work with INTx and leave", group_of_three),
];

/// On machines with two NVMes, and an IOMMU of 39 address bits.
pub const NARROW: &[Test] =
    &[("hot-plug: two NVMes come, within the reach of the IOMMU, work and leave", two_nvmes)];

/// On machines with an e1000e first.
pub const OF_NICS: &[Test] = &[("hot-plug: an e1000e comes, works and leaves", e1000e)];

/// On machines with a device of each kind.
pub const ON_ALL_DEVICES: &[Test] = &[
    ("hot-plug: an e1000e, an rtl8139, a SATA disk and three NICs come, work and leave", kinds),
    ("hot-plug: virtual functions come, work and leave", virtual_functions),
];

const HASHED: usize = 1 << 20;
const ASKED: u64 = 20;

/// Asserts that L1's kernel holds what it held before, and that no device is a bus master.
fn assert_free(l1: &mut L1, held: Held, devices: &[String]) -> Result<(), Error> {
    assert_eq!(Held::now(l1)?, held);
    for device in devices {
        assert!(!is_bus_master(l1, device)?, "{device} may do DMA");
    }
    Ok(())
}

fn nvme(l1: &mut L1) -> Result<(), Error> {
    let (device, held) = (assigned(l1, 0)?, Held::now(l1)?);
    let expected = sha256(&l1.image(0)?[..HASHED]);
    let guest = guest("disks:1,hash:1M,interrupts,mark:1,functions:1")
        .run_at(INIT, add(l1, &[&device]))
        .run_at(&mark(1), remove(&device));
    let outcome = boot(l1, &guest)?;
    let [added, removed] = sightings(&outcome);
    assert_came(added, &device, 1);
    assert_left(removed, &device);
    assert_eq!(hashes(&outcome), [expected], "{}", outcome.details());
    assert_eq!(kinds_of_interrupts(&outcome), ["nvme by msix"], "{}", outcome.details());
    assert_free(l1, held, &[device])
}

/// The guest starts without a device, so its plan cannot ask the IOMMU. With two devices the BARs are
/// mapped for DMA too, but iommufd of 6.12 cannot do that, and the VMM says so.
fn two_nvmes(l1: &mut L1) -> Result<(), Error> {
    let (devices, held) = ([assigned(l1, 0)?, assigned(l1, 1)?], Held::now(l1)?);
    let images = [l1.image(0)?, l1.image(1)?];
    let guest = guest("disks:2,hash:1M,mark:1,functions:1")
        .run_at(INIT, in_turn(&[add(l1, &devices[..1]), add(l1, &devices[1..])]))
        .run_at(&mark(1), removes(&devices));
    let outcome = boot(l1, &guest)?;
    let [added, removed] = sightings(&outcome);
    for (device, slot) in devices.iter().zip(1..) {
        assert_came(added, device, slot);
        assert_left(removed, device);
    }
    // The guest's kernel numbers the disks as they answer.
    let [mut found, mut expected] =
        [hashes(&outcome), images.map(|image| sha256(&image[..HASHED])).into()];
    found.sort();
    expected.sort();
    assert_eq!(found, expected, "{}", outcome.details());
    assert!(l1.machine().has_iommufd() || outcome.stderr.is_empty(), "{}", outcome.details());
    assert_free(l1, held, &devices)
}

/// How each driver got its interrupts.
fn kinds_of_interrupts(outcome: &Outcome) -> Vec<String> {
    let functions = outcome.reports.iter().filter_map(|report| match report {
        Report::Interrupts { functions } => Some(functions),
        _ => None,
    });
    let with_interrupts = functions.flatten().filter(|function| function.count > 0);
    with_interrupts.map(|function| format!("{} by {}", function.driver, function.kind)).collect()
}

/// Asserts that every ARP request was answered on this many networks.
fn assert_networks(outcome: &Outcome, count: usize) {
    let answers = outcome.reports.iter().filter_map(|report| match report {
        Report::Net { answered, .. } => Some(*answered),
        _ => None,
    });
    assert_eq!(answers.collect::<Vec<_>>(), vec![ASKED; count], "{}", outcome.details());
}

fn removes(devices: &[String]) -> Vec<String> {
    in_turn(&devices.iter().map(|device| remove(device)).collect::<Vec<_>>())
}

/// The small kernel has no driver for the third, an rtl8139.
fn group_of_three(l1: &mut L1) -> Result<(), Error> {
    let (nics, held) = (l1.machine().nics(), Held::now(l1)?);
    nics.iter().try_for_each(|nic| l1.bind(nic, VFIO))?;
    let driven = if l1.machine().guest_kernel.is_small() { 2 } else { 3 };
    let steps = format!("functions:4,networks:{driven},net:{ASKED},interrupts,mark:1,functions:1");
    let guest = guest(&steps).run_at(INIT, add(l1, &nics)).run_at(&mark(1), removes(&nics));
    let outcome = boot(l1, &guest)?;
    let [added, removed] = sightings(&outcome);
    for (nic, slot) in nics.iter().zip(1..) {
        assert_came(added, nic, slot);
        assert_left(removed, nic);
    }
    assert_networks(&outcome, driven);
    let expected = &["e1000 by intx", "e1000 by intx", "8139cp by intx"][..driven];
    assert_eq!(kinds_of_interrupts(&outcome), expected, "{}", outcome.details());
    assert_free(l1, held, &nics)
}

fn e1000e(l1: &mut L1) -> Result<(), Error> {
    let (device, held) = (assigned(l1, 0)?, Held::now(l1)?);
    let steps = format!("networks:1,net:{ASKED},interrupts,mark:1,functions:1");
    let guest = guest(&steps).run_at(INIT, add(l1, &[&device])).run_at(&mark(1), remove(&device));
    let outcome = boot(l1, &guest)?;
    let [added, removed] = sightings(&outcome);
    assert_came(added, &device, 1);
    assert_left(removed, &device);
    assert_networks(&outcome, 1);
    assert_eq!(kinds_of_interrupts(&outcome), ["e1000e by msix"], "{}", outcome.details());
    assert_free(l1, held, &[device])
}

/// The devices come one after another. The rtl8139 has no reset.
fn kinds(l1: &mut L1) -> Result<(), Error> {
    let held = Held::now(l1)?;
    let nics = l1.machine().nics();
    nics.iter().try_for_each(|nic| l1.bind(nic, VFIO))?;
    let alone = [Device::E1000e, Device::Rtl8139, Device::Ahci].map(|device| take(l1, device));
    let alone = alone.into_iter().collect::<Result<Vec<_>, _>>()?;
    let rtl8139 = format!("{},reset=none", alone[1]);
    let adds = [add(l1, &[&alone[0]]), add(l1, &[&rtl8139]), add(l1, &[&alone[2]]), add(l1, &nics)];
    let steps = format!("functions:7,networks:5,net:{ASKED},hash:1M,interrupts,mark:1,functions:1");
    let all = [alone.as_slice(), &nics].concat();
    let guest = guest(&steps).run_at(INIT, in_turn(&adds)).run_at(&mark(1), removes(&all));
    let outcome = boot(l1, &guest)?;
    let [added, removed] = sightings(&outcome);
    for (device, slot) in all.iter().zip(1..) {
        assert_came(added, device, slot);
        assert_left(removed, device);
    }
    assert_networks(&outcome, 5);
    let image = l1.machine().devices.iter().position(|own| *own == Device::Ahci).unwrap();
    assert_eq!(hashes(&outcome), [sha256(&l1.image(image)?[..HASHED])], "{}", outcome.details());
    let expected = [
        "e1000e by msix",
        "8139cp by intx",
        "ahci by msi",
        "e1000 by intx",
        "e1000 by intx",
        "8139cp by intx",
    ];
    assert_eq!(kinds_of_interrupts(&outcome), expected, "{}", outcome.details());
    assert_free(l1, held, &all)
}

/// Two virtual functions of an NVMe share its disk.
fn virtual_functions(l1: &mut L1) -> Result<(), Error> {
    let address = l1.machine().address_of(Device::NvmeWithVfs);
    l1.perform(&Request::VirtualFunctions { address, count: VFS })?;
    let vfs = [1, 2].map(|number| l1.machine().vf(number));
    vfs.iter().try_for_each(|vf| l1.bind(vf, VFIO))?;
    let held = Held::now(l1)?;
    let index = l1.machine().devices.iter().position(|own| *own == Device::NvmeWithVfs);
    let expected = sha256(&l1.image(index.unwrap())?[..HASHED]);
    let guest: Guest = guest("functions:3,disks:2,hash:1M,interrupts,mark:1,functions:1")
        .command_line(ONE_DISK_EACH)
        .run_at(INIT, in_turn(&[add(l1, &vfs[..1]), add(l1, &vfs[1..])]))
        .run_at(&mark(1), removes(&vfs));
    let outcome = boot(l1, &guest)?;
    let [added, removed] = sightings(&outcome);
    for (vf, slot) in vfs.iter().zip(1..) {
        assert_came(added, vf, slot);
        assert_left(removed, vf);
    }
    assert_eq!(hashes(&outcome), [expected.clone(), expected], "{}", outcome.details());
    assert_eq!(kinds_of_interrupts(&outcome), ["nvme by msix"; 2], "{}", outcome.details());
    assert_free(l1, held, &vfs)
}
