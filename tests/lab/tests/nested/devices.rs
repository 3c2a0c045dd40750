//! Each kind of device works with its Linux driver in the guest, and transfers the right data.

use guest::{Interrupts, Report};
use lab::protocol::Request;
use lab::{Device, Error, Guest, IVSHMEM_SIZE, L1, Outcome, VFS, sha256};

use crate::Test;
use crate::held::{Held, is_bus_master};
use crate::support::{VFIO, assert_refused, boot, counter, faults, hashes, ram_calls, take};

/// The devices of the machine that has one of each kind.
pub const DEVICES: &[Device] = &[
    Device::Nvme,
    Device::E1000e,
    Device::Rtl8139,
    Device::SharedGroup,
    Device::Ahci,
    Device::UsbDisk,
    Device::Edu,
    Device::Testdev,
    Device::Ivshmem,
    Device::NvmeWithVfs,
    Device::Ne2k,
];

/// The tests are short, so they also run on machines without the guard.
pub const TESTS: &[Test] = &[
    ("an NVMe works with MSI-X", |l1| disk(l1, Device::Nvme, "msix", 0)),
    ("a SATA disk behind a port works with MSI", |l1| disk(l1, Device::Ahci, "msi", 4)),
    ("a USB disk behind a port works with MSI-X", |l1| disk(l1, Device::UsbDisk, "msix", 5)),
    ("an e1000e works with MSI-X", e1000e),
    ("an rtl8139 and an ne2k work with INTx, the ne2k by its I/O BAR only", with_intx),
    ("three NICs of one group behind a bridge work with INTx", shared_group),
    ("one NIC of a group works, with the others left on vfio-pci", one_of_a_group),
    ("an edu works with MSI, and the IOMMU stops its stray DMA", edu),
    ("a large BAR works without exits", ivshmem),
    ("an I/O BAR works", ports),
    ("a guest reads the ROM of a device", rom),
    ("nine devices work in one guest, two of them on one interrupt line", nine),
    ("the physical function of an NVMe with virtual functions works", physical_function),
    ("16 virtual functions of an NVMe work in one guest", virtual_functions),
    ("a start whose third of four devices does not open leaves nothing", third_of_four),
];

const TOKEN: &str = "0d8d9d2b-5a5f-4f5a-a211-f591514ba1f3";
const HASHED: usize = 1 << 20;
const ASKED: u64 = 50;

/// A kernel command line without NVMe multipath, which would join the shared disks of controllers.
pub const ONE_DISK_EACH: &str = "console=ttyS0 panic=-1 quiet nvme_core.multipath=0";

fn interrupts(outcome: &Outcome) -> Vec<Interrupts> {
    let found = outcome.reports.iter().find_map(|report| match report {
        Report::Interrupts { functions } => Some(functions.clone()),
        _ => None,
    });
    found.unwrap_or_else(|| panic!("no interrupts reported\n{}", outcome.details()))
}

/// Asserts that the guest's only device with a driver interrupted in this way.
fn assert_interrupted_by(outcome: &Outcome, kind: &str) {
    let found = interrupts(outcome);
    let [only] = found.as_slice() else { panic!("{found:?}\n{}", outcome.details()) };
    assert!(only.kind == kind && only.count > 0, "{only:?}\n{}", outcome.details());
}

fn disk(l1: &mut L1, device: Device, kind: &str, image: usize) -> Result<(), Error> {
    let address = take(l1, device)?;
    let expected = sha256(&l1.image(image)?[..HASHED]);
    let outcome = boot(
        l1,
        &Guest::new("disks:1,hash:1M,write:64K@8M,interrupts")
            .command_line(ONE_DISK_EACH)
            .device(&address),
    )?;
    assert_eq!(hashes(&outcome), [expected], "{}", outcome.details());
    let same =
        outcome.reports.iter().any(|report| matches!(report, Report::Write { same: true, .. }));
    assert!(same, "{}", outcome.details());
    assert_interrupted_by(&outcome, kind);
    Ok(())
}

/// Asserts that every ARP request was answered; returns the number of networks.
fn networks(outcome: &Outcome) -> usize {
    let answers = outcome.reports.iter().filter_map(|report| match report {
        Report::Net { answered, .. } => Some(*answered),
        _ => None,
    });
    let answers: Vec<u64> = answers.collect();
    assert!(answers.iter().all(|answered| *answered == ASKED), "{}", outcome.details());
    answers.len()
}

fn e1000e(l1: &mut L1) -> Result<(), Error> {
    let address = take(l1, Device::E1000e)?;
    let outcome = boot(l1, &Guest::new(&format!("net:{ASKED},interrupts")).device(&address))?;
    assert_eq!(networks(&outcome), 1);
    assert_interrupted_by(&outcome, "msix");
    Ok(())
}

/// QEMU's conventional NICs on the root bus. The data of every frame of an ne2k passes its I/O BAR,
/// in part by string instructions.
fn with_intx(l1: &mut L1) -> Result<(), Error> {
    let address = take(l1, Device::Rtl8139)?;
    let refused = Guest::new("look").device(&address).boot(l1)?;
    let error =
        format!("error: {address}: it has no reset of its own, and its bus has none (ENODEV)");
    assert!(refused.stderr.contains(&error), "{}", refused.details());
    let ne2k = take(l1, Device::Ne2k)?;
    let guest = Guest::new(&format!("net:{ASKED},interrupts"))
        .device_without_reset(&address)
        .device_without_reset(&ne2k);
    let outcome = boot(l1, &guest)?;
    assert_eq!(networks(&outcome), 2, "{}", outcome.details());
    let found = interrupts(&outcome);
    let has_intx = |nic: &Interrupts| nic.kind == "intx" && nic.count >= ASKED;
    assert!(found.iter().all(has_intx), "{found:?}");
    let drivers: Vec<&str> = found.iter().map(|nic| nic.driver.as_str()).collect();
    assert_eq!(drivers, ["8139cp", "ne2k-pci"]);
    let accesses = |kind: &str| counter(&outcome, &format!("/devices/{ne2k}/{kind}"));
    assert!(
        accesses("bar_reads") > ASKED * 10 && accesses("bar_writes") > ASKED * 10,
        "{}",
        outcome.details()
    );
    Ok(())
}

/// Binds all NICs behind the bridge to vfio-pci. None can be reset alone, so their bus is reset,
/// which needs all of them on vfio-pci.
fn nics(l1: &mut L1) -> Result<[String; 3], Error> {
    let nics = l1.machine().nics();
    nics.iter().try_for_each(|nic| l1.bind(nic, VFIO))?;
    Ok(nics)
}

fn shared_group(l1: &mut L1) -> Result<(), Error> {
    let steps = format!("net:{ASKED},interrupts");
    let guest = nics(l1)?.iter().fold(Guest::new(&steps), |guest, nic| guest.device(nic));
    let outcome = boot(l1, &guest)?;
    assert_eq!(networks(&outcome), 3, "{}", outcome.details());
    assert!(interrupts(&outcome).iter().all(|nic| nic.kind == "intx" && nic.count > 0));
    // Each of the three causes a reset at its start and at its end.
    assert_eq!(counter(&outcome, "/vfio_ioctls/hot_reset"), 6);
    assert_eq!(counter(&outcome, "/vfio_ioctls/reset"), 0);
    Ok(())
}

/// The other NICs are on vfio-pci. If one of them has no driver, the bus cannot be reset.
fn one_of_a_group(l1: &mut L1) -> Result<(), Error> {
    let [own, other, last] = nics(l1)?;
    let steps = format!("net:{ASKED}");
    let outcome = boot(l1, &Guest::new(&steps).device(&own))?;
    assert_eq!(networks(&outcome), 1, "{}", outcome.details());
    assert_eq!(counter(&outcome, "/vfio_ioctls/hot_reset"), 2);
    l1.bind(&last, None)?;
    let refused = Guest::new("look").device(&other).boot(l1)?;
    let reason = format!("a reset of its bus would also reset {last} (bound to no driver)");
    assert!(refused.stderr.contains(&reason), "{}", refused.details());
    let outcome = boot(l1, &Guest::new(&steps).device_without_reset(&other))?;
    assert_eq!(networks(&outcome), 1, "{}", outcome.details());
    Ok(())
}

fn edu(l1: &mut L1) -> Result<(), Error> {
    let address = take(l1, Device::Edu)?;
    let before = faults(l1)?;
    let outcome = boot(l1, &Guest::new("edu,interrupts").small().device_without_reset(&address))?;
    let Some(Report::Edu { identification, factorial, copied, copied_after_straying, interrupts }) =
        outcome.reports.iter().find(|report| matches!(report, Report::Edu { .. }))
    else {
        panic!("no edu\n{}", outcome.details())
    };
    assert_eq!((*identification, *factorial), (0x0100_00ed, 3_628_800));
    assert!(*copied && *copied_after_straying, "{}", outcome.details());
    assert_eq!(*interrupts, 7, "one for the factorial and one for each of six copies");
    assert!(faults(l1)? > before, "the IOMMU reported no stray DMA");
    Ok(())
}

fn ivshmem(l1: &mut L1) -> Result<(), Error> {
    let address = take(l1, Device::Ivshmem)?;
    let outcome = boot(l1, &Guest::new("memory").device_without_reset(&address))?;
    let memory = outcome.reports.iter().find_map(|report| match report {
        Report::Memory { size, words, same } => Some((*size, *words, *same)),
        _ => None,
    });
    assert_eq!(memory, Some((IVSHMEM_SIZE, IVSHMEM_SIZE / 1024, true)), "{}", outcome.details());
    let trapped = counter(&outcome, &format!("/devices/{address}/bar_writes"));
    assert!(trapped < 16, "{trapped} writes were exits");
    Ok(())
}

fn ports(l1: &mut L1) -> Result<(), Error> {
    let address = take(l1, Device::Testdev)?;
    let outcome = boot(l1, &Guest::new("ports:100").device_without_reset(&address))?;
    let written = outcome.reports.iter().find_map(|report| match report {
        Report::Ports { name, count } => Some((name.as_str(), *count)),
        _ => None,
    });
    assert_eq!(written, Some(("portio-no-eventfd", 100)), "{}", outcome.details());
    Ok(())
}

/// The file that QEMU uses as the ROM of an e1000e.
const ROM: &str = "/usr/lib/ipxe/qemu/efi-e1000e.rom";

fn rom(l1: &mut L1) -> Result<(), Error> {
    let address = take(l1, Device::E1000e)?;
    let outcome = boot(l1, &Guest::new("rom").device(&address))?;
    let read = outcome.reports.iter().find_map(|report| match report {
        Report::Rom { bytes, sha256, .. } => {
            Some((usize::try_from(*bytes).unwrap(), sha256.clone()))
        }
        _ => None,
    });
    let (bytes, hash) = read.unwrap_or_else(|| panic!("no ROM\n{}", outcome.details()));
    let file = std::fs::read(ROM).unwrap();
    assert!(bytes > 64 << 10, "{bytes} bytes");
    assert_eq!(hash, sha256(&file[..bytes]), "{}", outcome.details());
    Ok(())
}

/// The devices in slots 1 and 9 share an interrupt line.
fn nine(l1: &mut L1) -> Result<(), Error> {
    let nics = nics(l1)?;
    let hashed = [0, 4, 5].map(|image| l1.image(image).map(|bytes| sha256(&bytes[..HASHED])));
    let mut expected = hashed.into_iter().collect::<Result<Vec<_>, _>>()?;
    expected.sort();
    let mut guest = Guest::new(&format!("disks:3,hash:1M,net:{ASKED},memory,ports:10,interrupts"))
        .device(&nics[0]);
    for device in [Device::Nvme, Device::E1000e, Device::Ahci, Device::UsbDisk] {
        guest = guest.device(&take(l1, device)?);
    }
    for device in [Device::Edu, Device::Testdev, Device::Ivshmem] {
        guest = guest.device_without_reset(&take(l1, device)?);
    }
    let outcome = boot(l1, &guest.device(&nics[1]).memory("1G"))?;
    assert_eq!(hashes(&outcome), expected, "{}", outcome.details());
    assert_eq!(networks(&outcome), 3, "{}", outcome.details());
    let found = interrupts(&outcome);
    assert!(found.iter().all(|function| function.count > 0), "{found:?}");
    let kinds: Vec<&str> = found.iter().map(|function| function.kind.as_str()).collect();
    assert_eq!(kinds, ["intx", "msix", "msix", "msi", "msix", "intx"], "{found:?}");
    Ok(())
}

/// The guest does not see SR-IOV, and the disk works like any other.
fn physical_function(l1: &mut L1) -> Result<(), Error> {
    disk(l1, Device::NvmeWithVfs, "msix", 9)?;
    let address = l1.machine().address_of(Device::NvmeWithVfs);
    l1.bind(&address, Some("nvme"))
}

/// The number of vectors of each virtual function: for an admin queue and two I/O queues.
const VECTORS_OF_VF: usize = 3;

/// With two CPUs the driver uses all vectors. Without the guard, a guest with two CPUs hangs under
/// so many interrupts. Then it has one CPU, with separate queues for reads and writes, which also
/// needs all vectors.
fn virtual_functions(l1: &mut L1) -> Result<(), Error> {
    let address = l1.machine().address_of(Device::NvmeWithVfs);
    l1.perform(&Request::VirtualFunctions { address, count: VFS })?;
    let expected = sha256(&l1.image(9)?[..HASHED]);
    let (cpus, queues) = match l1.unguarded() {
        Some(_) => (1, "nvme.write_queues=1"),
        None => (2, ""),
    };
    let mut guest = Guest::new(&format!("disks:{VFS},hash:1M,interrupts")).cpus(cpus);
    for number in 1..=VFS {
        let function = l1.machine().vf(number);
        l1.bind(&function, VFIO)?;
        guest = guest.device(&function);
    }
    let outcome = boot(l1, &guest.command_line(&format!("{ONE_DISK_EACH} {queues}")))?;
    assert_eq!(hashes(&outcome), vec![expected; VFS.into()], "{}", outcome.details());
    let found = interrupts(&outcome);
    assert_eq!(found.len(), usize::from(VFS), "{found:?}");
    let all =
        found.iter().all(|it| it.kind == "msix" && it.vectors == VECTORS_OF_VF && it.count > 0);
    assert!(all, "{found:?}");
    // RAM is mapped once for all groups.
    // By iommufd the mapping of each BAR is refused on kernels without dma-bufs of BARs, and counts
    // as a call.
    let refuses = l1.machine().has_iommufd() && !l1.machine().kernel.exports_bars();
    let refused = if refuses { u64::from(VFS) } else { 0 };
    let [mapped, _] = ram_calls(&outcome);
    assert_eq!(mapped - refused, counter(&outcome, "/ram_regions"), "{}", outcome.details());
    // All are behind one port, where the kernel resets one of them at their close.
    assert_eq!(counter(&outcome, "/vfio_ioctls/reset"), u64::from(VFS), "{}", outcome.details());
    Ok(())
}

/// No virtual function here takes a VF token, which the kernel finds out when it opens the device.
fn third_of_four(l1: &mut L1) -> Result<(), Error> {
    let address = l1.machine().address_of(Device::NvmeWithVfs);
    l1.perform(&Request::VirtualFunctions { address, count: VFS })?;
    let functions: Vec<String> = (1..=4).map(|number| l1.machine().vf(number)).collect();
    functions.iter().try_for_each(|function| l1.bind(function, VFIO))?;
    let before = Held::now(l1)?;
    let third = format!("{},vf-token={TOKEN}", functions[2]);
    let devices = [&functions[0], &functions[1], &third, &functions[3]];
    let guest = devices.into_iter().fold(Guest::new("look"), |guest, device| guest.device(device));
    let refused = guest.boot(l1)?;
    assert_refused(&refused, &[&format!("{}: it takes no VF token (EINVAL)", functions[2])]);
    assert_eq!(Held::now(l1)?, before);
    for function in &functions {
        assert!(!is_bus_master(l1, function)?, "{function}");
    }
    let guest = Guest::new("disks:1,hash:64K").command_line(ONE_DISK_EACH).device(&functions[2]);
    boot(l1, &guest).map(drop)
}
