use resources::CpuReach;

use super::super::fixture::Fixture;
use super::super::names::Names;
use super::super::table;
use super::*;

const NVME: &str = "0000:00:02.0";
const REMAPPED: &str = " 24:  0  0  IR-PCI-MSI-0000:00:02.0  0-edge  nvme0q0\n";
const LIMITS: &str =
    "Max open files            1024                 524288               files     \n";

/// A host on which all is well, with an NVMe at vfio-pci.
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

/// The lines that are not ok, each as `check status`, and all of their texts.
fn complaints(lines: &[Line]) -> (Vec<String>, String) {
    let bad: Vec<_> = lines.iter().filter(|line| line.status != Status::Ok).collect();
    let heads = bad.iter().map(|line| format!("{} {:?}", line.check, line.status));
    let texts = bad
        .iter()
        .map(|line| format!("{}\n{}\n", line.what, line.mend.clone().unwrap_or_default()));
    (heads.collect(), texts.collect())
}

/// There is one complaint, which has these parts.
fn complains(fixture: &Fixture, probes: &Probes, head: &str, parts: &[&str]) {
    let (heads, text) = complaints(&checked(fixture, probes));
    assert_eq!(heads, [head]);
    parts.iter().for_each(|part| assert!(text.contains(part), "no {part:?} in: {text}"));
}

#[test]
fn a_host_on_which_all_is_well_is_ok_and_says_what_it_found() {
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
        "up to 137 are opened",
    ];
    parts.iter().for_each(|part| assert!(text.contains(part), "no {part:?} in:\n{text}"));
}

#[test]
fn what_the_host_lacks_is_a_failure_with_what_mends_it() {
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
fn without_an_iommu_the_kernels_command_line_is_told_by_the_make_of_cpu() {
    let cases = [
        ("GenuineIntel", "quiet", "put intel_iommu=on on the kernel's"),
        ("GenuineIntel", "quiet intel_iommu=on", "turn on VT-d in the firmware\n"),
        ("AuthenticAMD", "quiet", "turn on AMD-Vi"),
    ];
    for (make, command_line, mend) in cases {
        let fixture = Fixture::new()
            .file("proc/cpuinfo", format!("vendor_id : {make}\n"))
            .file("proc/cmdline", command_line);
        let lines = check(&fixture.host(), &probes(), &[], "1G".parse().unwrap());
        let (heads, text) = complaints(&lines);
        assert_eq!(heads, ["iommu Fail"]);
        assert!(text.contains(mend), "{text}");
    }
}

#[test]
fn interrupts_that_are_not_remapped_fail_unless_that_is_allowed() {
    let fixture = || good().file("proc/interrupts", REMAPPED.replace("IR-", ""));
    let unsafe_interrupts = "sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts";
    complains(
        &fixture(),
        &probes(),
        "interrupt-remapping Fail",
        &["remaps no interrupts", "echo 1 > /sys/module/vfio_iommu_type1"],
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
fn too_few_open_files_are_told_with_the_number() {
    let fixture = good().file("proc/self/limits", LIMITS.replace("1024", "136"));
    complains(
        &fixture,
        &probes(),
        "open-files Fail",
        &["up to 137 files", "limit is 136", "ulimit -n 137"],
    );
}

#[test]
fn a_device_that_is_not_there_is_the_only_line_of_its() {
    let named = ["0000:09:00.0".parse().unwrap()];
    let lines = check(&good().host(), &probes(), &named, "1G".parse().unwrap());
    let of_device: Vec<_> =
        lines.iter().filter(|line| line.device.as_deref() == Some("0000:09:00.0")).collect();
    assert_eq!(of_device.len(), 1);
    assert_eq!(of_device[0].mend.as_deref(), Some("vmm devices"));
}

#[test]
fn a_device_of_the_hosts_is_told_with_the_command() {
    let on = |driver| good_without_device().nvme(NVME, 7, driver);
    let mend = "vmm bind 0000:00:02.0";
    complains(&on(Some("nvme")), &probes(), "driver Fail", &["bound to nvme", mend]);
    complains(&on(None), &probes(), "driver Fail", &["bound to no driver", mend]);
}

fn good_without_device() -> Fixture {
    Fixture::new().file("proc/interrupts", REMAPPED).file("proc/self/limits", LIMITS)
}

#[test]
fn whoever_breaks_a_group_is_named_with_the_command() {
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
fn a_bridge_is_not_for_guests() {
    let fixture = good_without_device().device(NVME, "0x060400", Some(7), Some("vfio-pci"));
    complains(&fixture, &probes(), "device Fail", &["a bridge"]);
}

#[test]
fn a_device_in_no_group_says_so() {
    let fixture = good().device("0000:00:03.0", "0x010802", None, Some("vfio-pci"));
    let named = ["0000:00:03.0".parse().unwrap()];
    let lines = check(&fixture.host(), &probes(), &named, "1G".parse().unwrap());
    assert_eq!(complaints(&lines).0, ["group Fail"]);
}

#[test]
fn a_group_without_its_node_says_so() {
    let fixture = good();
    std::fs::remove_file(fixture.path("dev/vfio/7")).unwrap();
    complains(&fixture, &probes(), "group-node Fail", &["/dev/vfio/7 does not open"]);
}

#[test]
fn a_group_that_no_iommu_stands_behind_fails() {
    let fixture = good().file("sys/kernel/iommu_groups/7/name", "vfio-noiommu\n");
    let parts = ["group 7 is one without an IOMMU", "enable_unsafe_noiommu_mode"];
    complains(&fixture, &probes(), "group Fail", &parts);
}

#[test]
fn a_device_whose_resets_were_switched_off_is_a_warning() {
    let folder = "sys/bus/pci/devices/0000:00:02.0";
    let method = format!("{folder}/reset_method");
    // The kernel keeps the other file where it could reset the device when it found it.
    let fixture = good().file(&method, "").file(&format!("{folder}/reset"), "");
    let default = format!("echo default > /{method}");
    complains(&fixture, &probes(), "reset Warning", &["switched off", &default]);
}

#[test]
fn a_device_that_nothing_resets_is_a_warning_with_the_option() {
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
    // Before Linux 5.15 there is no reset_method, and this file only where something resets it.
    let fixture = fixture.file("sys/bus/pci/devices/0000:00:02.0/reset", "");
    assert_eq!(complaints(&checked(&fixture, &probes())).0, [""; 0]);
}

#[test]
fn memory_that_the_firmware_uses_by_the_device_fails_unless_it_is_let_go() {
    let regions = "sys/kernel/iommu_groups/7/reserved_regions";
    let fixture = good().file(regions, "0x7b800000 0x7fffffff direct\n");
    complains(&fixture, &probes(), "iova Fail", &["RMRR", "0x7b800000-0x7fffffff (direct)"]);
    let fixture = good().file(regions, "0x7b800000 0x7fffffff direct-relaxable\n");
    assert_eq!(complaints(&checked(&fixture, &probes())).0, [""; 0]);
}

#[test]
fn bars_that_have_no_place_are_told_with_the_plan() {
    let resource = "sys/bus/pci/devices/0000:00:02.0/resource";
    let huge = "0x0000000000000000 0x00007fffffffffff 0x0000000000140204\n";
    let parts = ["BAR 0 of 0000:00:02.0 (128 TiB of 64-bit memory)", "planned so far"];
    complains(&good().file(resource, huge), &probes(), "layout Fail", &parts);
}

#[test]
fn a_bar_that_the_iommu_does_not_reach_has_no_place() {
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
fn memory_that_the_group_reserves_is_no_place_for_ram() {
    let regions = "sys/kernel/iommu_groups/7/reserved_regions";
    let fixture = |kind: &str| good().file(regions, format!("0x0 0xffffffffff {kind}\n"));
    complains(&fixture("reserved"), &probes(), "layout Fail", &["planned so far"]);
    let relaxable = checked(&fixture("direct-relaxable"), &probes());
    assert_eq!(complaints(&relaxable).0, [""; 0], "VFIO lets go of it");
}

#[test]
fn json_has_the_promised_fields() {
    let lines = checked(&good(), &probes());
    let json = serde_json::to_value(&lines).unwrap();
    let first = serde_json::json!({
        "check": "kvm",
        "device": null,
        "status": "ok",
        "what": "/dev/kvm opens: API version 12, 46 address bits for guests",
        "mend": null,
    });
    assert_eq!(json[0], first);
    assert_eq!(json[5]["device"], NVME);
}

#[test]
fn the_list_says_who_is_ready_and_why_not() {
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
    let told: Vec<_> = listed
        .iter()
        .map(|l| (l.address.as_str(), l.ready, l.why.as_deref().unwrap_or_default()))
        .collect();
    let expected = [
        (NVME, true, ""),
        ("0000:00:03.0", false, "not on vfio-pci: vmm bind 0000:00:03.0"),
        (
            "0000:00:04.0",
            false,
            "group 9 is not viable, since 0000:00:04.1 is bound to e1000: vmm bind 0000:00:04.1",
        ),
        ("0000:00:04.1", false, "not on vfio-pci: vmm bind 0000:00:04.1"),
        ("0000:00:05.0", false, "a bridge: it stays with the host"),
        ("0000:00:06.0", false, "in no IOMMU group: see 'vmm check'"),
    ];
    assert_eq!(told, expected);
    assert_eq!(listed[0].name, "Red Hat NVMe");
}

mod hostile;
