use resources::CpuReach;

use super::super::fixture::Fixture;
use super::super::names::Names;
use super::super::table;
use super::*;
use crate::host::arch::{INTERRUPTS, iommu_remedy};

const NVME: &str = "0000:00:02.0";
const REMAPPED: &str = INTERRUPTS[0];
const NOT_REMAPPED: &str = INTERRUPTS[1];
const LIMITS: &str =
    "Max open files            1024                 524288               files     \n";

/// A host without problems, with an NVMe on vfio-pci.
fn good() -> Fixture {
    Fixture::new()
        .nvme(NVME, 7, Some("vfio-pci"))
        .file("proc/interrupts", REMAPPED)
        .file("proc/self/limits", LIMITS)
        .file("proc/cpuinfo", "vendor_id\t: GenuineIntel\n")
}

fn probes() -> Probes {
    Probes {
        kvm: Ok((12, CpuReach { address_bits: 46, hypertransport: false })),
        vfio: Ok(()),
        locked: Ok(()),
        memory: Ok(()),
    }
}

fn checked(fixture: &Fixture, probes: &Probes) -> Vec<Line> {
    let named = [NVME.parse().unwrap()];
    check(&fixture.host(), probes, &named, "1G".parse().unwrap())
}

/// The lines that are not ok, each as `check status`, and their texts.
fn complaints(lines: &[Line]) -> (Vec<String>, String) {
    let bad: Vec<_> = lines.iter().filter(|line| line.status != Status::Ok).collect();
    let heads = bad.iter().map(|line| format!("{} {:?}", line.check, line.status));
    let texts = bad
        .iter()
        .map(|line| format!("{}\n{}\n", line.what, line.remedy.clone().unwrap_or_default()));
    (heads.collect(), texts.collect())
}

/// Asserts that exactly one check complains, with these parts.
fn complains(fixture: &Fixture, probes: &Probes, head: &str, parts: &[&str]) {
    let (heads, text) = complaints(&checked(fixture, probes));
    assert_eq!(heads, [head]);
    parts.iter().for_each(|part| assert!(text.contains(part), "no {part:?} in: {text}"));
}

#[test]
fn all_checks_of_a_good_host_are_ok_and_describe_their_findings() {
    let lines = checked(&good(), &probes());
    assert_eq!(complaints(&lines).0, [""; 0]);
    let text = table::checks(&lines);
    let parts = [
        "API version 12, 46 address bits",
        "1 groups",
        "1b36:0010, class 010802",
        "bound to vfio-pci",
        "group 7 has 0000:00:02.0 (vfio-pci)",
        "/dev/vfio/7 opens",
        "0xfee00000-0xfeefffff (msi)",
        "resets by: flr bus",
        "BAR0 16K 64-bit",
        "MSI-X with 65 vectors",
        "opens up to 105 files",
    ];
    parts.iter().for_each(|part| assert!(text.contains(part), "no {part:?} in:\n{text}"));
}

#[test]
fn a_missing_need_of_the_host_fails_with_its_remedy() {
    let wrong = |change: fn(&mut Probes)| {
        let mut probes = probes();
        change(&mut probes);
        probes
    };
    let cases = [
        (
            wrong(|p| p.kvm = Err("no /dev/kvm\n  load it with: modprobe kvm_intel".into())),
            "kvm Fail",
            ["no /dev/kvm\n", "modprobe kvm_intel"],
        ),
        (
            wrong(|p| p.vfio = Err("cannot open; run 'modprobe vfio-pci'".into())),
            "vfio Fail",
            ["cannot open\n", "run 'modprobe"],
        ),
        (
            wrong(|p| p.locked = Err(("too much".into(), "ulimit -l 5".into()))),
            "locked-memory Fail",
            ["too much", "ulimit -l 5"],
        ),
        (wrong(|p| p.memory = Err("this host has 5M".into())), "memory Fail", ["5M", "--memory"]),
    ];
    for (probes, head, parts) in cases {
        complains(&good(), &probes, head, &parts);
    }
}

#[test]
fn without_an_iommu_the_remedy_is_that_of_the_host() {
    let fixture = Fixture::new().file("proc/cpuinfo", "").file("proc/cmdline", "quiet");
    let lines = check(&fixture.host(), &probes(), &[], "1G".parse().unwrap());
    let (heads, text) = complaints(&lines);
    assert_eq!(heads, ["iommu Fail"]);
    assert!(text.contains(iommu_remedy("", "quiet")), "{text}");
}

#[test]
fn a_device_without_a_driver_may_have_no_group_yet() {
    let fixture = Fixture::new()
        .device(NVME, "0x010802", None, None)
        .file("sys/class/iommu/smmu3.0x0000000009050000/uevent", "");
    let (heads, text) = complaints(&checked(&fixture, &probes()));
    assert_eq!(heads, ["driver Fail", "group Fail"]);
    assert!(text.contains("when a driver binds\nvmm bind 0000:00:02.0"), "{text}");
    let host = fixture.host();
    let why = host.obstacle(&host.device(NVME.parse().unwrap()).unwrap());
    assert_eq!(why.as_deref(), Some("not bound to vfio-pci: vmm bind 0000:00:02.0"));
}

#[test]
fn interrupts_without_remapping_fail_unless_allowed() {
    let fixture = || good().file("proc/interrupts", NOT_REMAPPED);
    let unsafe_interrupts = "sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts";
    complains(
        &fixture(),
        &probes(),
        "interrupt-remapping Fail",
        &["interrupt remapping is off", "echo 1 > /sys/module/vfio_iommu_type1"],
    );
    complains(
        &fixture().file(unsafe_interrupts, "N\n"),
        &probes(),
        "interrupt-remapping Fail",
        &[],
    );
    complains(
        &fixture().file(unsafe_interrupts, "Y\n"),
        &probes(),
        "interrupt-remapping Warning",
        &["allow"],
    );
}

#[test]
fn a_low_limit_of_open_files_fails_with_the_needed_number() {
    let fixture = good()
        .file("proc/self/limits", LIMITS.replace("1024  ", "104   ").replace("524288", "104   "));
    complains(
        &fixture,
        &probes(),
        "open-files Fail",
        &["up to 105 files", "limit is 104", "ulimit -n 105"],
    );
}

#[test]
fn limits_that_are_too_low_fail_with_their_remedy() {
    let group = |file: &str, text: &str| {
        let own = good().file("proc/self/cgroup", "0::/vm.slice/vmm.service\n");
        own.file(&format!("sys/fs/cgroup/vm.slice/{file}"), text)
    };
    let process = |line: &str| good().file("proc/self/limits", format!("{LIMITS}{line}\n"));
    let promised = good()
        .file("proc/sys/vm/overcommit_memory", "2\n")
        .file("proc/meminfo", "CommitLimit: 1000 kB\nCommitted_AS: 999 kB\n");
    let cases = [
        (
            group("memory.max", "536870912\n"),
            "memory-limits Fail",
            ["needs 1040 MiB", "512 MiB of 512 MiB left (/sys/fs/cgroup/vm.slice/memory.max)"],
        ),
        (
            group("memory.high", "536870912\n"),
            "memory-limits Warning",
            ["memory.high", "MemoryHigh=1040M"],
        ),
        (group("pids.max", "2\n"), "threads Fail", ["2 of 2 left", "TasksMax=4"]),
        (
            process("Max address space 1000 1000 bytes"),
            "memory-limits Fail",
            ["RLIMIT_AS", "ulimit -v"],
        ),
        (promised, "overcommit Fail", ["vm.overcommit_memory is 2", "sysctl"]),
        (
            good().file("proc/sys/vm/max_map_count", "100\n"),
            "mappings Fail",
            ["host allows 100", "sysctl vm.max_map_count"],
        ),
    ];
    for (fixture, head, parts) in cases {
        complains(&fixture, &probes(), head, &parts);
    }
    let enough = group("memory.max", "max\n").file("sys/fs/cgroup/memory.max", "2000000000\n");
    assert_eq!(complaints(&checked(&enough, &probes())).0, [""; 0]);
    let soft = process("Max address space 1000 unlimited bytes");
    assert_eq!(complaints(&checked(&soft, &probes())).0, [""; 0], "a soft limit is raised");
}

#[test]
fn a_missing_device_has_exactly_one_line() {
    let named = ["0000:09:00.0".parse().unwrap()];
    let lines = check(&good().host(), &probes(), &named, "1G".parse().unwrap());
    let of_device: Vec<_> =
        lines.iter().filter(|line| line.device.as_deref() == Some("0000:09:00.0")).collect();
    assert_eq!(of_device.len(), 1);
    assert_eq!(of_device[0].remedy.as_deref(), Some("vmm devices"));
}

#[test]
fn a_device_on_a_host_driver_fails_with_the_command() {
    let on = |driver| good_without_device().nvme(NVME, 7, driver);
    let remedy = "vmm bind 0000:00:02.0";
    complains(&on(Some("nvme")), &probes(), "driver Fail", &["bound to nvme", remedy]);
    complains(&on(None), &probes(), "driver Fail", &["bound to no driver", remedy]);
}

fn good_without_device() -> Fixture {
    Fixture::new().file("proc/interrupts", REMAPPED).file("proc/self/limits", LIMITS)
}

#[test]
fn a_group_that_is_not_viable_names_the_devices_and_the_command() {
    let fixture = good()
        .device("0000:00:02.1", "0x040300", Some(7), Some("snd_hda_intel"))
        .device("0000:00:02.2", "0x0c0330", Some(7), Some("xhci_hcd"))
        .device("0000:00:02.3", "0x0c8000", Some(7), None)
        .device("0000:00:01.0", "0x060400", Some(7), Some("pcieport"));
    complains(
        &fixture,
        &probes(),
        "group Fail",
        &[
            "0000:00:02.1 is bound to snd_hda_intel and 0000:00:02.2 is bound to xhci_hcd;",
            "0000:00:02.3 (no driver)",
            "0000:00:01.0 (pcieport)",
            "vmm bind 0000:00:02.1 0000:00:02.2\n",
        ],
    );
}

#[test]
fn a_bridge_fails() {
    let fixture = good_without_device().device(NVME, "0x060400", Some(7), Some("vfio-pci"));
    complains(&fixture, &probes(), "device Fail", &["a bridge"]);
}

#[test]
fn a_device_in_no_group_fails() {
    let fixture = good().device("0000:00:03.0", "0x010802", None, Some("vfio-pci"));
    let named = ["0000:00:03.0".parse().unwrap()];
    let lines = check(&fixture.host(), &probes(), &named, "1G".parse().unwrap());
    assert_eq!(complaints(&lines).0, ["group Fail"]);
}

#[test]
fn a_group_without_its_node_fails() {
    let fixture = good();
    std::fs::remove_file(fixture.path("dev/vfio/7")).unwrap();
    complains(&fixture, &probes(), "node Fail", &["/dev/vfio/7 does not open"]);
}

#[test]
fn a_group_without_an_iommu_fails() {
    let fixture = good().file("sys/kernel/iommu_groups/7/name", "vfio-noiommu\n");
    let parts = ["group 7 has no IOMMU", "enable_unsafe_noiommu_mode"];
    complains(&fixture, &probes(), "group Fail", &parts);
}

#[test]
fn disabled_resets_are_a_warning() {
    let folder = "sys/bus/pci/devices/0000:00:02.0";
    let method = format!("{folder}/reset_method");
    // The kernel creates the other file if it could reset the device at discovery.
    let fixture = good().file(&method, "").file(&format!("{folder}/reset"), "");
    let default = format!("echo default > /{method}");
    complains(&fixture, &probes(), "reset Warning", &["resets are disabled", &default]);
}

#[test]
fn a_missing_reset_is_a_warning_with_the_option() {
    let method = "sys/bus/pci/devices/0000:00:02.0/reset_method";
    complains(
        &good().file(method, "\n"),
        &probes(),
        "reset Warning",
        &["--vfio 0000:00:02.0,reset=none"],
    );
    let fixture = good();
    std::fs::remove_file(fixture.path(method)).unwrap();
    complains(&fixture, &probes(), "reset Warning", &[]);
    // Linux before 5.15 has no reset_method, and creates this file only if a reset exists.
    let fixture = fixture.file("sys/bus/pci/devices/0000:00:02.0/reset", "");
    assert_eq!(complaints(&checked(&fixture, &probes())).0, [""; 0]);
}

#[test]
fn memory_that_the_firmware_uses_by_the_device_fails_unless_relaxable() {
    let regions = "sys/kernel/iommu_groups/7/reserved_regions";
    let fixture = good().file(regions, "0x7b800000 0x7fffffff direct\n");
    complains(&fixture, &probes(), "iova Fail", &["RMRR", "0x7b800000-0x7fffffff (direct)"]);
    let fixture = good().file(regions, "0x7b800000 0x7fffffff direct-relaxable\n");
    assert_eq!(complaints(&checked(&fixture, &probes())).0, [""; 0]);
}

#[test]
fn bars_that_do_not_fit_fail_with_the_plan() {
    let resource = "sys/bus/pci/devices/0000:00:02.0/resource";
    let huge = "0x0000000000000000 0x00007fffffffffff 0x0000000000140204\n";
    let parts = ["BAR 0 of 0000:00:02.0 (128 TiB of 64-bit memory)", "planned so far"];
    complains(&good().file(resource, huge), &probes(), "layout Fail", &parts);
}

#[test]
fn a_bar_beyond_the_iommus_limit_does_not_fit() {
    let resource = "sys/bus/pci/devices/0000:00:02.0/resource";
    let fixture = |capability: &str| {
        good()
            .file(resource, "0x0000000000000000 0x0000007fffffffff 0x0000000000140204\n")
            .file("sys/bus/pci/devices/0000:00:02.0/iommu/intel-iommu/cap", capability)
    };
    assert_eq!(complaints(&checked(&fixture("d2008c222f0686\n"), &probes())).0, [""; 0], "48 bits");
    let parts = ["BAR 0 of 0000:00:02.0 (512 GiB of 64-bit memory)"];
    complains(&fixture("d2008c22260286\n"), &probes(), "layout Fail", &parts);
}

#[test]
fn ram_does_not_fit_in_reserved_memory() {
    let regions = "sys/kernel/iommu_groups/7/reserved_regions";
    let fixture = |kind: &str| good().file(regions, format!("0x0 0xffffffffff {kind}\n"));
    complains(&fixture("reserved"), &probes(), "layout Fail", &["planned so far"]);
    let relaxable = checked(&fixture("direct-relaxable"), &probes());
    assert_eq!(complaints(&relaxable).0, [""; 0], "relaxable regions do not count");
}

#[test]
fn the_json_has_the_documented_fields() {
    let lines = checked(&good(), &probes());
    let json = serde_json::to_value(&lines).unwrap();
    let first = serde_json::json!({
        "check": "kvm",
        "device": null,
        "status": "ok",
        "what": "/dev/kvm opens: API version 12, 46 address bits for guests",
        "remedy": null,
    });
    assert_eq!(json[0], first);
    assert_eq!(json[5]["device"], NVME);
}

#[test]
fn the_list_shows_ready_devices_and_obstacles() {
    let fixture = good()
        .file("usr/share/hwdata/pci.ids", "1b36  Red Hat\n\t0010  NVMe\n")
        .nvme("0000:00:03.0", 8, Some("nvme"))
        .nvme("0000:00:04.0", 9, Some("vfio-pci"))
        .device("0000:00:04.1", "0x020000", Some(9), Some("e1000"))
        .device("0000:00:05.0", "0x060400", Some(10), Some("pcieport"))
        .device("0000:00:06.0", "0x010802", None, Some("nvme"));
    let host = fixture.host();
    let names = Names::of(&host.tree);
    let listed: Vec<_> = host.devices().iter().map(|d| host.listed(d, &names)).collect();
    let rows: Vec<_> = listed
        .iter()
        .map(|l| (l.address.as_str(), l.ready, l.why.as_deref().unwrap_or_default()))
        .collect();
    let expected = [
        (NVME, true, ""),
        ("0000:00:03.0", false, "not bound to vfio-pci: vmm bind 0000:00:03.0"),
        (
            "0000:00:04.0",
            false,
            "group 9 is not viable, because 0000:00:04.1 is bound to e1000: vmm bind 0000:00:04.1",
        ),
        ("0000:00:04.1", false, "not bound to vfio-pci: vmm bind 0000:00:04.1"),
        ("0000:00:05.0", false, "a bridge, which stays with the host"),
        ("0000:00:06.0", false, "in no IOMMU group: vmm check"),
    ];
    assert_eq!(rows, expected);
    assert_eq!(listed[0].name, "Red Hat NVMe");
}

/// vfio-pci made the second function of the first NVMe; a driver of the host made that of the other.
#[test]
fn the_list_names_the_vf_token_that_a_virtual_function_needs() {
    let virtual_of = |fixture: Fixture, own: &str, physical: &str| {
        let link = format!("sys/devices/pci0000:00/{own}/physfn");
        let group = own.bytes().last().map(u32::from).unwrap();
        let fixture = fixture.nvme(own, group, Some("vfio-pci"));
        fixture.link(&link, &format!("sys/devices/pci0000:00/{physical}"))
    };
    let fixture = good().nvme("0000:00:03.0", 8, Some("nvme"));
    let fixture = virtual_of(fixture, "0000:00:02.1", NVME);
    let fixture = virtual_of(fixture, "0000:00:03.2", "0000:00:03.0");
    let host = fixture.host();
    let names = Names::of(&host.tree);
    let listed: Vec<_> = host.devices().iter().map(|d| host.listed(d, &names)).collect();
    let tokens: Vec<_> = listed.iter().map(|listed| listed.vf_token_of.as_deref()).collect();
    assert_eq!(tokens, [None, Some(NVME), None, None]);
    let line = "yes, with the VF token of 0000:00:02.0: vf-token=UUID";
    let table = table::devices(&listed);
    assert!(table.lines().nth(2).unwrap().contains(line), "{table}");
    assert_eq!(table.matches("VF token").count(), 1, "{table}");
}

mod hostile;
mod members;
mod ready;
