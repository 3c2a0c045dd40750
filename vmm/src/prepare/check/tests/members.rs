//! One host for each reason why a guest would not start, and for its neighbour that is none.

use super::super::super::fixture::header_of;
use super::*;

const CDEV: &str = "sys/class/vfio-dev/vfio0/dev";
const PF: &str = "0000:00:01.0";

/// The row of `vmm devices`: why the device is not ready.
fn why(fixture: &Fixture) -> Option<String> {
    let host = fixture.host();
    host.obstacle(&host.device(NVME.parse().unwrap()).unwrap())
}

fn lacks(fixture: &Fixture, part: &str) {
    let why = why(fixture).unwrap();
    assert!(why.contains(part), "no {part:?} in: {why}");
}

#[test]
fn a_kernel_without_groups_fails_with_the_option_and_no_device_is_ready() {
    let fixture = good().file(CDEV, "511:0\n");
    let node = fixture.path("dev/vfio/7");
    std::fs::remove_file(node).unwrap();
    let mut probes = probes();
    probes.vfio = Err("cannot open /dev/vfio/vfio; run 'modprobe vfio-pci'".into());
    let (heads, text) = complaints(&checked(&fixture, &probes));
    assert_eq!(heads, ["vfio Fail", "node Fail"]);
    assert!(text.contains("only the nodes of devices (/dev/vfio/devices)"), "{text}");
    assert!(text.contains("CONFIG_VFIO_GROUP and CONFIG_VFIO_CONTAINER"), "{text}");
    assert!(text.contains("modprobe iommufd"), "{text}");
    lacks(&fixture, "this kernel's VFIO has no groups, and no iommufd: vmm check");
    // A kernel with both kinds of nodes.
    let both = good().file(CDEV, "511:0\n").file("sys/class/vfio/7/dev", "511:1\n");
    assert_eq!(complaints(&checked(&both, &super::probes())).0, [""; 0]);
    assert_eq!(why(&both), None);
}

#[test]
fn a_device_with_a_node_of_its_own_is_ready_by_iommufd() {
    let own = "sys/devices/pci0000:00/0000:00:02.0/vfio-dev/vfio3/dev";
    let fixture = good().file(CDEV, "511:0\n").file("dev/iommu", "").file(own, "511:3\n");
    std::fs::remove_file(fixture.path("dev/vfio/7")).unwrap();
    lacks(&fixture, "this kernel's VFIO has no groups, and no iommufd: vmm check");
    let fixture = fixture.file("dev/vfio/devices/vfio3", "");
    assert_eq!(why(&fixture), None);
    let lines = checked(&fixture, &probes());
    assert_eq!(complaints(&lines).0, [""; 0]);
    let text: Vec<_> = lines.iter().map(|line| line.what.as_str()).collect();
    for part in ["/dev/iommu opens", "/dev/vfio/devices/vfio3 opens, for iommufd"] {
        assert!(text.iter().any(|line| line.contains(part)), "no {part:?} in: {text:#?}");
    }
    std::os::unix::fs::symlink("/dev/iommu", fixture.path("dev/vfio/vfio")).unwrap();
    let line = checked(&fixture, &probes()).into_iter().find(|line| line.check == "vfio");
    assert!(!line.unwrap().what.contains("type1 is there"), "a link is no container of type1");
    let taken = fixture.process(71, "qemu", "/dev/vfio/devices/vfio3");
    complains(&taken, &probes(), "node Fail", &["in use by qemu (process 71)"]);
}

#[test]
fn a_node_that_only_the_container_lacks_fails_with_its_option() {
    let fixture = good().file("sys/class/vfio/7/dev", "511:1\n");
    std::fs::remove_file(fixture.path("dev/vfio/7")).unwrap();
    let parts = ["does not exist here", "--device /dev/vfio/7", "DeviceAllow=/dev/vfio/7"];
    complains(&fixture, &probes(), "node Fail", &parts);
    lacks(&fixture, "no /dev/vfio/7: vmm check 0000:00:02.0");
}

#[test]
fn a_container_by_iommufd_is_a_warning() {
    let fixture = good();
    std::os::unix::fs::symlink("/dev/iommu", fixture.path("dev/vfio/vfio")).unwrap();
    let parts = ["a link to iommufd", "vfio_iommu_type1", "chown $USER /dev/iommu"];
    complains(&fixture, &probes(), "vfio Warning", &parts);
}

#[test]
fn a_device_that_a_process_has_is_not_ready_and_names_the_process() {
    let own = "sys/devices/pci0000:00/0000:00:02.0/vfio-dev/vfio3/dev";
    for node in ["/dev/vfio/7", "/dev/vfio/devices/vfio3"] {
        let fixture = good().file(own, "511:3\n").process(71, "qemu", node);
        lacks(&fixture, "in use by qemu (process 71)");
    }
    assert_eq!(why(&good().process(71, "qemu", "/dev/vfio/8")), None);
}

#[test]
fn a_virtual_function_needs_a_token_if_its_physical_function_is_on_vfio() {
    let folder = format!("sys/devices/pci0000:00/{NVME}");
    let physical = format!("sys/devices/pci0000:00/{PF}");
    let fixture = |driver| {
        good().device(PF, "0x010802", Some(8), driver).link(&format!("{folder}/physfn"), &physical)
    };
    let parts = ["only with a token", PF, "--vfio 0000:00:02.0,vf-token=UUID"];
    complains(&fixture(Some("vfio-pci")), &probes(), "vf-token Warning", &parts);
    assert_eq!(why(&fixture(Some("vfio-pci"))), None, "the list names the token beside \"yes\"");
    for driver in [Some("nvme"), None] {
        assert_eq!(complaints(&checked(&fixture(driver), &probes())).0, [""; 0]);
        assert_eq!(why(&fixture(driver)), None);
    }
}

#[test]
fn a_device_that_no_guest_could_open_is_not_ready() {
    let cases = [
        (good().file("sys/kernel/iommu_groups/7/name", "vfio-noiommu\n"), "has no IOMMU (noiommu)"),
        (
            good().file(
                "sys/kernel/iommu_groups/7/reserved_regions",
                "0x7b800000 0x7fffffff direct\n",
            ),
            "the firmware uses memory by this device",
        ),
        (good().file("proc/interrupts", "24: 0 PCI-MSI\n"), "interrupt remapping is off"),
    ];
    cases.iter().for_each(|(fixture, part)| lacks(fixture, part));
    let allowed = good()
        .file("proc/interrupts", "24: 0 PCI-MSI\n")
        .file("sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "Y\n");
    assert_eq!(why(&allowed), None);
}

/// A NIC of the host that is up with an address.
fn used() -> Fixture {
    good_without_device()
        .nvme(NVME, 7, Some("igb"))
        .file("sys/bus/pci/drivers/vfio-pci/new_id", "")
        .link("sys/class/net/eth0", "sys/devices/pci0000:00/0000:00:02.0/net/eth0")
        .file("proc/net/route", "Iface\neth0\t0002A8C0\t00000000\n")
}

#[test]
fn a_device_that_the_host_uses_fails_and_names_the_use() {
    let (heads, text) = complaints(&checked(&used(), &probes()));
    assert_eq!(heads, ["driver Fail", "in-use Fail"]);
    let what = "the host uses the device for the network interface eth0, which is up and has an \
                address; 'vmm bind' refuses it\nip link set eth0 down\n";
    assert!(text.contains(what), "{text}");
    lacks(&used(), "in use by the host for the network interface eth0, which is up");
}

#[test]
fn a_process_with_a_node_of_the_device_is_named() {
    let node = "sys/devices/pci0000:00/0000:00:02.0/nvme/nvme0/uevent";
    let fixture = good_without_device()
        .nvme(NVME, 7, Some("nvme"))
        .file(node, "DEVNAME=nvme0\n")
        .process(71, "spdk", "/dev/nvme0");
    let (heads, text) = complaints(&checked(&fixture, &probes()));
    assert_eq!(heads, ["driver Fail", "in-use Fail"]);
    assert!(text.contains("for spdk (process 71), which has /dev/nvme0 open; "), "{text}");
}

/// A kernel with modules, whose driver is not loaded.
fn modules(list: &str) -> Fixture {
    good_without_device()
        .nvme(NVME, 7, Some("nvme"))
        .file("proc/sys/kernel/osrelease", "6.12\n")
        .file("lib/modules/6.12/modules.dep", list)
}

const VFIO_PCI: &str = "kernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/drivers/vfio/vfio.ko.xz\n";

#[test]
fn a_driver_that_cannot_be_loaded_fails_with_the_reason() {
    let conf = "etc/modprobe.d/no.conf";
    let cases = [
        (modules(""), "the kernel 6.12 has no vfio-pci"),
        (
            modules(VFIO_PCI).file(conf, "install vfio-pci /bin/false\n"),
            "in /etc/modprobe.d/no.conf",
        ),
        (modules(VFIO_PCI).file(conf, "  install vfio_pci  /usr/bin/true\n"), "no.conf"),
        (
            modules(VFIO_PCI).file("proc/cmdline", "quiet module_blacklist=nouveau,vfio-pci\n"),
            "module_blacklist=vfio-pci",
        ),
    ];
    for (fixture, part) in cases {
        let (heads, text) = complaints(&checked(&fixture, &probes()));
        assert_eq!(heads, ["vfio-pci Fail", "driver Fail"]);
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
    let fine = [
        modules(VFIO_PCI),
        modules("")
            .file("lib/modules/6.12/modules.builtin", "kernel/drivers/vfio/pci/vfio-pci.ko\n"),
        modules("").file("sys/bus/pci/drivers/vfio-pci/new_id", ""),
        modules(VFIO_PCI).file(conf, "blacklist vfio-pci\noptions vfio-pci ids=8086:1572\n"),
        modules(VFIO_PCI).file(conf, "install vfio-pci /sbin/modprobe --ignore-install vfio-pci\n"),
        modules(VFIO_PCI).file("proc/cmdline", "module_blacklist=nouveau\n"),
        modules(VFIO_PCI).file("proc/cmdline", "modprobe.blacklist=vfio-pci\n"),
    ];
    for fixture in fine {
        assert_eq!(complaints(&checked(&fixture, &probes())).0, ["driver Fail"]);
    }
}

#[test]
fn a_device_on_the_denylist_of_vfio_pci_fails_unless_the_list_is_off() {
    let folder = "sys/devices/pci0000:00/0000:00:02.0";
    let fixture = |driver| {
        good_without_device()
            .nvme(NVME, 7, driver)
            .file(&format!("{folder}/vendor"), "0x8086\n")
            .file(&format!("{folder}/device"), "0x37c8\n")
            .file(&format!("{folder}/modalias"), "pci:v00008086d000037C8sv00008086\n")
            .file(&format!("{folder}/config"), header_of((0x8086, 0x37c8)))
    };
    let parts = ["(denylist)", "modprobe vfio-pci disable_denylist=1"];
    complains(&fixture(Some("c6xx")), &probes(), "driver Fail", &parts);
    let off = fixture(Some("c6xx")).file("sys/module/vfio_pci/parameters/disable_denylist", "Y\n");
    complains(&off, &probes(), "driver Fail", &["bound to c6xx"]);
    assert_eq!(complaints(&checked(&fixture(Some("vfio-pci")), &probes())).0, [""; 0]);
}

#[test]
fn more_devices_than_slots_fail() {
    let named: Vec<_> = (1..=32).map(|n| format!("0000:{n:02x}:00.0").parse().unwrap()).collect();
    let fixture = named.iter().zip(20..).fold(good(), |fixture, (address, group)| {
        fixture.nvme(&PciAddress::to_string(address), group, Some("vfio-pci"))
    });
    let complaints_of = |named: &[PciAddress]| {
        let fixture = fixture.host();
        let lines = check(&fixture, &probes(), named, "1G".parse().unwrap());
        complaints(&lines).0.into_iter().filter(|head| head.starts_with("slots")).count()
    };
    assert_eq!(complaints_of(&named), 1);
    assert_eq!(complaints_of(&named[1..]), 0);
}

#[test]
fn a_low_limit_of_mappings_is_a_warning_with_the_number() {
    let limit = "sys/module/vfio_iommu_type1/parameters/dma_entry_limit";
    let parts = ["up to 8 mappings", "a container takes 7", "echo 8 > /sys/module"];
    complains(&good().file(limit, "7\n"), &probes(), "dma-mappings Warning", &parts);
    assert_eq!(complaints(&checked(&good().file(limit, "8\n"), &probes())).0, [""; 0]);
}
