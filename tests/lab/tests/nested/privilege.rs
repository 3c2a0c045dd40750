//! The VMM runs as an ordinary user, with only the system calls of its seccomp lists.

use lab::protocol::{Ending, Program, Request};
use lab::{Error, Guest, Kernel, L1, place, sha256, times};

use crate::Test;
use crate::support::{VFIO, assigned, boot, hashes};

/// On a machine with two NVMes first, and a group of several devices; on the fastest kernel only.
pub const TESTS: &[Test] = &[
    ("privilege: an ordinary user without capabilities runs the VMM", ordinary),
    ("privilege: the VMM uses files that are passed open", passed),
];

/// The rows are those of type1.
pub const BY_TYPE1: &[Test] = &[
    ("privilege: the VMM needs each system call for devices", needed),
    ("privilege: the VMM needs each system call for devices that come and go", needed_by_plug),
];

/// The same by iommufd.
pub const BY_IOMMUFD: &[Test] = &[
    ("privilege: the VMM needs each system call for iommufd", needed_by_iommufd),
    ("privilege: the VMM needs each system call for devices that come and go", needed_by_plug),
    ("privilege: the VMM uses files of iommufd that are passed open", passed_by_iommufd),
];

/// On a machine with an NVMe first, and a kernel that gives the NVMe a queue for each CPU.
pub const ON_STOCK: &[Test] =
    &[("privilege: a vCPU commits the routes of many vectors", many_vectors)];

const USER: u32 = 1000;
const INIT: &str = "\"report\":\"init\"";
const HASH: &str = "\"report\":\"hash\"";
const PLUG_SOCKET: &str = "/tmp/plug.sock";
const STATUS: &str = "/proc/{pid}/status";
const HASHED: usize = 1 << 20;

/// The rows of the lists that are needed only with devices. The tests of `vmm` check all others.
const ROWS: &str = include_str!("../../../../vmm/tests/program/seccomp-with-devices.txt");
/// The rows that are needed only with iommufd.
const IOMMUFD_ROWS: &str = include_str!("../../../../vmm/tests/program/seccomp-with-iommufd.txt");
/// The rows of these that are needed only on kernels with dma-bufs of BARs (7.x).
const DMA_BUF_ROWS: [&str; 3] =
    ["vcpu:IOMMU_IOAS_UNMAP", "vcpu:IOMMU_IOAS_MAP_FILE", "main:IOMMU_IOAS_MAP_FILE"];
/// The rows of these that are needed only on other kernels, where a BAR is mapped by its address.
const ADDRESS_ROWS: [&str; 2] = ["vcpu:IOMMU_IOAS_MAP", "main:IOMMU_IOAS_MAP"];
/// The rows of [`ROWS`] that are not needed with iommufd. A hot reset has the number of
/// `main:VFIO_IOMMU_MAP_DMA`.
const TYPE1_ROWS: [&str; 4] = [
    "vcpu:VFIO_IOMMU_MAP_DMA",
    "vcpu:VFIO_IOMMU_UNMAP_DMA",
    "main:VFIO_IOMMU_UNMAP_DMA",
    "main:VFIO_GROUP_GET_STATUS",
];
/// The rows of devices that come and go.
const PLUG_ROWS: &str = include_str!("../../../../vmm/tests/program/seccomp-with-hot-plug.txt");
/// The row that is needed only by a guest with many vectors.
const ROUTES: &str = "vcpu:KVM_SET_GSI_ROUTING";
/// The rows that are not needed by the guests here: [`ROUTES`], and those of a guest that accesses a
/// device while the host takes it. No test can hold that moment.
const RARE_ROWS: [&str; 3] = [ROUTES, "vcpu:KVM_SET_DEVICE_ATTR", "vcpu:VFIO_GROUP_GET_STATUS"];
/// How a VMM ends after a call that is on no list.
const NOT_ALLOWED: Ending = Ending::Status(159);

/// Gives `/dev/kvm`, `/dev/iommu` if guests use it, and the nodes of `/dev/vfio` to a user.
fn own(l1: &mut L1, user: u32) -> Result<(), Error> {
    let iommufd = l1.machine().has_iommufd().then_some("/dev/iommu");
    ["/dev/kvm", "/dev/vfio"]
        .into_iter()
        .chain(iommufd)
        .try_for_each(|path| l1.perform(&Request::Own { path: path.into(), user }))
}

/// The user owns `/dev/kvm` and the nodes of the devices, and may lock the guest's memory.
fn ordinary(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    own(l1, USER)?;
    let expected = sha256(&l1.image(0)?[..HASHED]);
    let guest = Guest::new("hash:1M,read:50,reboots:1")
        .memory("128M")
        .device(&device)
        .limited(USER, 128 << 20)
        .look_at(INIT, &[STATUS])
        .reboots();
    let outcome = boot(l1, &guest)?;
    own(l1, 0)?;
    assert_eq!(hashes(&outcome), vec![expected; 2], "{}", outcome.details());
    let interface = if l1.machine().has_iommufd() { "iommufd" } else { "type1" };
    assert_eq!(outcome.stats["iommu"], interface, "{}", outcome.details());
    let status = &outcome.finished.sightings[0].files[STATUS];
    let value = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {status}")).trim()
    };
    assert!(value("Uid:").starts_with("1000\t"), "{status}");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(value(set), "0000000000000000", "{set}");
    }
    // 2 is SECCOMP_MODE_FILTER (proc(5)).
    assert_eq!((value("NoNewPrivs:"), value("Seccomp:")), ("1", "2"));
    Ok(())
}

/// The path of the node of a device's group.
fn node(l1: &mut L1, device: &str) -> Result<String, Error> {
    let list = l1.run(Program {
        arguments: [place::VMM, "devices"].map(str::to_owned).to_vec(),
        ..Program::default()
    })?;
    let line = list.stdout.lines().find(|line| line.starts_with(device)).unwrap();
    Ok(format!("/dev/vfio/{}", line.split_whitespace().nth(1).unwrap()))
}

/// The option of the container, and its node.
const CONTAINER: (&str, &str) = ("--container", "/dev/vfio/vfio");

/// A guest whose VMM gets kernel, initrd, /dev/kvm, a device's node and, by an option, the container
/// or iommufd as open files. Its user may open none of the first four.
fn all_passed(node: &str, (option, path): (&str, &str)) -> Guest {
    let files = [place::KERNEL, place::INITRD, "/dev/kvm", node, path];
    Guest::new("hash:1M,reboots:1")
        .memory("128M")
        .limited(USER, 128 << 20)
        .kernel("fd={0}")
        .initrd("fd={1}")
        .arguments(["--kvm", "fd={2}", option, "fd={4}"])
        .open(&files.map(str::to_owned))
        .reboots()
}

fn passed(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    let own = node(l1, &device)?;
    let expected = sha256(&l1.image(0)?[..HASHED]);
    let named = format!("{device},fd={{3}}");
    for name in ["fd={3}", &named] {
        let outcome = boot(l1, &all_passed(&own, CONTAINER).device(name))?;
        assert_eq!(hashes(&outcome), vec![expected.clone(); 2], "{}", outcome.details());
    }
    let nics = l1.machine().nics();
    nics.iter().try_for_each(|nic| l1.bind(nic, VFIO))?;
    let other = node(l1, &nics[0])?;
    let wrong = ["the file that was passed is that of VFIO group", "pass /dev/vfio/"];
    let several = [nics[1].as_str(), "choose one with: --vfio ADDRESS,fd="];
    for (name, parts) in [(named.as_str(), wrong), ("fd={3}", several)] {
        let outcome = all_passed(&other, CONTAINER).device(name).boot(l1)?;
        assert_eq!(outcome.finished.ending, Ending::Status(1), "{}", outcome.details());
        for part in parts {
            assert!(outcome.stderr.contains(part), "no {part:?}: {}", outcome.details());
        }
    }
    Ok(())
}

/// As [`all_passed`], with the device's own node and iommufd.
fn passed_by_iommufd(l1: &mut L1) -> Result<(), Error> {
    let device = assigned(l1, 0)?;
    let names = l1.read(&format!("/sys/bus/pci/devices/{device}/vfio-dev"))?;
    let node = format!("/dev/vfio/devices/{}", names.trim());
    let expected = sha256(&l1.image(0)?[..HASHED]);
    let guest =
        all_passed(&node, ("--iommufd", "/dev/iommu")).device(&format!("{device},fd={{3}}"));
    let outcome = boot(l1, &guest)?;
    assert_eq!(hashes(&outcome), vec![expected; 2], "{}", outcome.details());
    assert_eq!(outcome.stats["iommu"], "iommufd", "{}", outcome.details());
    Ok(())
}

/// Takes each row from the lists in turn: the VMM must end, and name the call. The first guest
/// needs most calls: it reads, reboots, maps and unmaps BARs for peer-to-peer DMA, uses MSI-X and
/// INTx, and has two devices that are reset with their bus. The second guest resets its NVMe.
fn needed(l1: &mut L1) -> Result<(), Error> {
    are_needed(l1, ROWS.lines())
}

/// The rows of iommufd, and in the long form all others too.
fn needed_by_iommufd(l1: &mut L1) -> Result<(), Error> {
    let others_own = match l1.machine().kernel {
        Kernel::Small73 => ADDRESS_ROWS.as_slice(),
        _ => &DMA_BUF_ROWS,
    };
    let own = IOMMUFD_ROWS.lines().filter(|row| !others_own.contains(row));
    let others = ROWS.lines().filter(|row| times(0, 1) == 1 && !TYPE1_ROWS.contains(row));
    are_needed(l1, own.chain(others))
}

fn are_needed<'a>(l1: &mut L1, rows: impl Iterator<Item = &'a str>) -> Result<(), Error> {
    let nics = l1.machine().nics();
    nics.iter().try_for_each(|nic| l1.bind(nic, VFIO))?;
    let devices = [assigned(l1, 0)?, assigned(l1, 1)?, nics[0].clone(), nics[1].clone()];
    let of_all =
        devices.iter().fold(Guest::new("read:20,reboots:1"), |guest, device| guest.device(device));
    let resets = Guest::new("toggle:500").device(&devices[0]).device(&devices[1]);
    let guests = [of_all.reboots().memory("64M"), resets.memory("64M")];
    for guest in &guests {
        boot(l1, guest)?;
    }
    let mut unneeded = Vec::new();
    let rows = rows.filter(|row| !RARE_ROWS.contains(row));
    for row in rows.step_by(usize::try_from(times(4, 1)).unwrap()) {
        let mut is_missed = false;
        // If the VMM ends at the guest's reboot, the disk still holds the number of reboots, and
        // the next guest does not reboot. So try the first guest twice.
        for guest in [&guests[0], &guests[0], &guests[1]] {
            is_missed = is_missed || misses(l1, guest, row)?;
        }
        if !is_missed {
            unneeded.push(row);
        }
    }
    // The disk may hold a number of reboots still, which the next test's guest would find.
    boot(l1, &guests[0])?;
    assert!(unneeded.is_empty(), "not needed: {unneeded:#?}");
    Ok(())
}

/// The rows of [`PLUG_ROWS`] that the guest here does not need: deferred routes, a lock that the
/// kernel holds, a race of two devices, functions with a reset of their own behind one bridge, and
/// dma-bufs of BARs.
const RARE_PLUG_ROWS: [&str; 6] = [
    "control:epoll_ctl",
    "control:clock_nanosleep",
    "control:KVM_REGISTER_COALESCED_MMIO",
    "control:KVM_UNREGISTER_COALESCED_MMIO",
    "control:VFIO_DEVICE_RESET",
    "control:VFIO_DEVICE_FEATURE",
];

/// Whether a row of [`PLUG_ROWS`] is for this kind of devices. Containers, groups and their mappings
/// are type1's.
fn is_of(row: &str, is_iommufd: bool) -> bool {
    const TYPE1: [&str; 6] =
        ["VFIO_GET", "VFIO_CHECK", "VFIO_SET", "VFIO_GROUP", "VFIO_IOMMU", "PCI_HOT_RESET"];
    match row.contains("IOMMUFD") || row.contains(":IOMMU_") {
        true => is_iommufd,
        false => !is_iommufd || !TYPE1.iter().any(|part| row.contains(part)),
    }
}

/// Takes each row of devices that come and go from the control thread's list in turn. Four devices
/// come at once and leave one after another, the first without the guest's consent. RAM is a file
/// where the kernel can map one.
fn needed_by_plug(l1: &mut L1) -> Result<(), Error> {
    let (memory, map_of_others) = match l1.machine().kernel {
        Kernel::Small73 => ("64M,shared=on", "control:IOMMU_IOAS_MAP"),
        _ => ("64M", "control:IOMMU_IOAS_MAP_FILE"),
    };
    let nics = l1.machine().nics();
    nics.iter().try_for_each(|nic| l1.bind(nic, VFIO))?;
    let devices = [assigned(l1, 0)?, assigned(l1, 1)?, nics[0].clone(), nics[1].clone()];
    let iommu = if l1.machine().has_iommufd() { "iommufd" } else { "type1" };
    let added = devices.iter().flat_map(|device| ["--vfio", device]);
    let add: Vec<_> =
        [place::VMM, "add", PLUG_SOCKET, "--iommu", iommu].into_iter().chain(added).collect();
    let mut guest = Guest::new("disks:2,hash:64K,pause:3000")
        .memory(memory)
        .arguments(["--control", PLUG_SOCKET])
        .run_at(INIT, add.into_iter().map(str::to_owned).collect());
    for (number, device) in devices.iter().enumerate() {
        let force = (number == 0).then_some("--force");
        let remove = [place::VMM, "remove", PLUG_SOCKET, device].into_iter().chain(force);
        guest = guest.run_at(HASH, remove.map(str::to_owned).collect());
    }
    let outcome = guest.boot(l1)?;
    let said: String = outcome.finished.sightings.iter().map(|own| own.said.as_str()).collect();
    let is_free = |device: &String| said.contains(&format!("{device} is free"));
    assert!(outcome.is_success() && devices.iter().all(is_free), "{said}: {}", outcome.details());
    let is_iommufd = l1.machine().has_iommufd();
    let rows = PLUG_ROWS.lines().filter(|row| !RARE_PLUG_ROWS.contains(row));
    let rows = rows.filter(|row| is_of(row, is_iommufd) && *row != map_of_others);
    let mut unneeded = Vec::new();
    for row in rows.step_by(usize::try_from(times(8, 1)).unwrap()) {
        if !misses(l1, &guest, row)? {
            unneeded.push(row);
        }
    }
    assert!(unneeded.is_empty(), "not needed: {unneeded:#?}");
    Ok(())
}

/// A guest's kernel unmasks a vector for each of 17 CPUs, one by one: a vCPU commits 16 deferred
/// routes, which takes a call that no smaller guest needs.
fn many_vectors(l1: &mut L1) -> Result<(), Error> {
    let guest = Guest::new("read:20").device(&assigned(l1, 0)?).cpus(17);
    boot(l1, &guest)?;
    assert!(misses(l1, &guest, ROUTES)?, "{ROUTES} is not needed");
    Ok(())
}

/// Whether the VMM without `row` ends and names the call.
fn misses(l1: &mut L1, guest: &Guest, row: &str) -> Result<bool, Error> {
    let option = format!("--seccomp=on,without={row}");
    let outcome = guest.clone().arguments([option]).boot(l1)?;
    println!("{row}: {:?} after {} ns", outcome.finished.ending, outcome.finished.elapsed_ns);
    let call = row.split(':').nth(1).unwrap_or_default();
    let mut names = [format!(": {call} ("), format!("({call})")].into_iter();
    Ok(names.any(|name| outcome.stderr.contains(&name)) && outcome.finished.ending == NOT_ALLOWED)
}
