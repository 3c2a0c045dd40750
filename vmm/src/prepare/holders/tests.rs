use super::super::fixture::Fixture;
use super::*;

const NVME: &str = "sys/devices/pci0000:00/0000:00:02.0/nvme/nvme0/nvme0n1";
const SATA: &str = "sys/devices/pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0/block/sda";

/// An NVMe with two partitions and a SATA disk.
fn disks() -> Fixture {
    Fixture::new()
        .link("sys/dev/block/259:2", &format!("{NVME}/nvme0n1p2"))
        .link("sys/class/block/nvme0n1p2", &format!("{NVME}/nvme0n1p2"))
        .link("sys/class/block/nvme0n1p3", &format!("{NVME}/nvme0n1p3"))
        .link("sys/dev/block/8:0", SATA)
        .link("sys/class/block/sda", SATA)
}

fn mounted(fixture: Fixture, lines: &str) -> Fixture {
    fixture.file("proc/self/mountinfo", lines)
}

/// The uses and their functions.
fn held(fixture: &Fixture) -> Vec<(String, Vec<String>)> {
    let row = |holder: Holder| {
        let devices = holder.devices.iter().map(ToString::to_string);
        (holder.what, devices.collect())
    };
    holders(&fixture.tree()).into_iter().map(row).collect()
}

fn expect(fixture: &Fixture, expected: &[(&str, &[&str])]) {
    let expected: Vec<_> = expected
        .iter()
        .map(|(what, devices)| {
            let devices = devices.iter().map(ToString::to_string);
            ((*what).to_owned(), devices.collect())
        })
        .collect();
    assert_eq!(held(fixture), expected);
}

#[test]
fn a_partition_uses_the_controller_of_its_disk() {
    let fixture = mounted(
        disks(),
        "22 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw\n\
         23 22 0:5 / /proc rw - proc proc rw\n\
         24 22 8:0 / /mnt/with\\040space rw - xfs /dev/sda rw\n",
    );
    expect(
        &fixture,
        &[
            ("the root file system (/dev/nvme0n1p2)", &["0000:00:02.0"]),
            ("the file system on /mnt/with\\040space (/dev/sda)", &["0000:00:1f.2"]),
        ],
    );
}

#[test]
fn a_device_mapper_on_an_array_uses_all_disks() {
    let fixture = disks()
        .link("sys/dev/block/253:0", "sys/devices/virtual/block/dm-0")
        .link("sys/devices/virtual/block/dm-0/slaves/md0p1", "sys/devices/virtual/block/md0/md0p1")
        .link("sys/devices/virtual/block/md0/slaves/sda", SATA)
        .link("sys/devices/virtual/block/md0/slaves/nvme0n1p2", &format!("{NVME}/nvme0n1p2"));
    let fixture = mounted(fixture, "22 1 253:0 / / rw - ext4 /dev/mapper/root rw\n");
    let both: &[&str] = &["0000:00:02.0", "0000:00:1f.2"];
    expect(&fixture, &[("the root file system (/dev/mapper/root)", both)]);
}

#[test]
fn btrfs_uses_its_source_and_its_other_disks() {
    let fixture = disks()
        .file("sys/fs/btrfs/features/raid1", "")
        .link("sys/fs/btrfs/uuid/devices/sda", SATA)
        .link("sys/fs/btrfs/uuid/devices/nvme0n1p2", &format!("{NVME}/nvme0n1p2"));
    let fixture = mounted(fixture, "22 1 0:33 /@ / rw - btrfs /dev/nvme0n1p2 rw,subvol=/@\n");
    let both: &[&str] = &["0000:00:02.0", "0000:00:1f.2"];
    expect(&fixture, &[("the root file system (/dev/nvme0n1p2)", both)]);
}

#[test]
fn a_multipath_nvme_uses_all_controllers() {
    let subsystem = "sys/devices/virtual/nvme-subsystem/nvme-subsys0";
    let fixture = Fixture::new()
        .link("sys/dev/block/259:0", &format!("{subsystem}/nvme0n1"))
        .link(&format!("{subsystem}/nvme0"), "sys/devices/pci0000:00/0000:00:02.0/nvme/nvme0")
        .link(&format!("{subsystem}/nvme1"), "sys/devices/pci0000:00/0000:00:03.0/nvme/nvme1");
    let fixture = mounted(fixture, "22 1 259:0 / / rw - ext4 /dev/nvme0n1 rw\n");
    let both: &[&str] = &["0000:00:02.0", "0000:00:03.0"];
    expect(&fixture, &[("the root file system (/dev/nvme0n1)", both)]);
}

#[test]
fn a_disk_behind_a_bridge_or_in_another_domain_uses_all_functions_above() {
    let folder =
        "sys/devices/pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:06.0/10000:e1:00.0/nvme/nvme0";
    let fixture = Fixture::new().link("sys/dev/block/259:0", folder);
    let fixture = mounted(fixture, "22 1 259:0 / / rw - ext4 /dev/nvme0n1 rw\n");
    let all: &[&str] = &["0000:00:0e.0", "10000:e0:06.0", "10000:e1:00.0"];
    expect(&fixture, &[("the root file system (/dev/nvme0n1)", all)]);
}

#[test]
fn swap_uses_its_disk() {
    let swaps = "Filename Type Size Used Priority\n/dev/nvme0n1p3 partition 8388604 0 -2\n/swap/file file 1 0 -3\n";
    let fixture = disks().file("proc/swaps", swaps);
    expect(&fixture, &[("swap space (/dev/nvme0n1p3)", &["0000:00:02.0"])]);
}

const ROUTES: &str = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
br0\t00000000\t0102A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
eth1\t00000000\t0102A8C0\t0003\t0\t0\t50\t00000080\t0\t0\t0
eth1\t0002A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
";

#[test]
fn the_default_route_uses_the_nic_below_the_bridge() {
    let nic = "sys/devices/pci0000:00/0000:00:03.0/net/eth0";
    let fixture = Fixture::new()
        .file("proc/net/route", ROUTES)
        .link("sys/class/net/br0", "sys/devices/virtual/net/br0")
        .link("sys/devices/virtual/net/br0/lower_eth0", nic)
        .link("sys/class/net/eth0", nic)
        .link("sys/class/net/eth1", "sys/devices/pci0000:00/0000:00:04.0/net/eth1");
    let what = "the default route (network interface br0)";
    let other = "the network interface eth1, which is up and has an address";
    expect(&fixture, &[(what, &["0000:00:03.0"]), (other, &["0000:00:04.0"])]);
}

#[test]
fn the_ipv6_default_route_counts_unless_it_is_unreachable() {
    let zeros = "0".repeat(32);
    let gateway = format!("fe80{}1", "0".repeat(27));
    let line = |destination: &str, prefix, interface| {
        format!(
            "{destination} {prefix} {zeros} 00 {gateway} 00000400 00000001 00000000 00000003 {interface}\n"
        )
    };
    let routes = [
        line(&zeros, "00", "eth0"),
        line(&zeros, "00", "lo"),
        line(&gateway, "80", "eth1"),
        line(&zeros, "40", "eth1"),
    ];
    let fixture = Fixture::new().file("proc/net/ipv6_route", routes.concat());
    let fixture = ["eth0", "eth1", "lo"].iter().zip(2..).fold(fixture, |fixture, (name, slot)| {
        let nic = format!("sys/devices/pci0000:00/0000:00:{slot:02x}.0/net/{name}");
        fixture.link(&format!("sys/class/net/{name}"), &nic)
    });
    let what = "the default route (network interface eth0)";
    expect(&fixture, &[(what, &["0000:00:02.0"])]);
}

#[test]
fn missing_or_invalid_files_contain_no_uses() {
    expect(&Fixture::new(), &[]);
    let garbage = [
        &b""[..],
        b"\n\n",
        b"a b c d e f g h i j k\n",
        b"22 1 ../../../etc / / rw - ext4 /dev/../../etc rw\n",
        b"22 1 4294967296:99999999999999999999 / / rw - ext4 none rw\n",
        b" - \n- - -\n",
        b"22 1 259:2 / /\xff\xfe rw - ext4\n",
        b"\xff\xff\xff\xff 00000000 \x00\n",
    ];
    for text in garbage {
        let names = [
            "self/mountinfo",
            "swaps",
            "net/route",
            "net/ipv6_route",
            "net/if_inet6",
            "consoles",
            "bus/input/devices",
            "iomem",
            "cmdline",
        ];
        let fixture =
            names.iter().fold(disks(), |fixture, name| fixture.file(&format!("proc/{name}"), text));
        expect(&fixture, &[]);
    }
}

#[test]
fn loops_of_links_and_of_layers_end() {
    let [one, two] = ["dm-0", "dm-1"].map(|name| format!("sys/devices/virtual/block/{name}"));
    let fixture = disks()
        .link("sys/dev/block/253:0", &one)
        .link(&format!("{one}/slaves/dm-1"), &two)
        .link(&format!("{two}/slaves/dm-0"), &one)
        .link(&format!("{two}/slaves/sda"), SATA);
    let itself = fixture.path(&format!("{one}/slaves/itself"));
    std::os::unix::fs::symlink(&itself, &itself).unwrap();
    let fixture = mounted(fixture, "22 1 253:0 / / rw - ext4 /dev/mapper/root rw\n");
    let what = "the root file system (/dev/mapper/root)";
    expect(&fixture, &[(what, &["0000:00:1f.2"])]);
}

mod members;
mod network;
mod storage;
