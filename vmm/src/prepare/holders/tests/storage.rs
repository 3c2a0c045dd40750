//! Uses of disks.

use super::super::uses as all_uses;
use super::members::{USB, below, host, in_use, not_in_use, uses};
use super::*;

#[test]
fn volumes_and_arrays_use_their_disks_without_a_mount() {
    let folder = "sys/devices/virtual/block";
    let on_sata = |name: &str| {
        host()
            .link(&format!("sys/class/block/{name}"), &format!("{folder}/{name}"))
            .link(&format!("{folder}/{name}/slaves/sda"), SATA)
    };
    let volume = |uuid: &str| {
        on_sata("dm-0")
            .file(&format!("{folder}/dm-0/dm/name"), "data\n")
            .file(&format!("{folder}/dm-0/dm/uuid"), format!("{uuid}\n"))
    };
    let cases = [
        ("LVM-x", "the LVM volume data (dm-0)"),
        ("CRYPT-LUKS2-x-data", "the encrypted volume data (dm-0)"),
        ("mpath-3600", "the multipath device data (dm-0)"),
        ("", "the device-mapper volume data (dm-0)"),
    ];
    for (uuid, what) in cases {
        in_use(&volume(uuid), "0000:00:1f.2", what, "dmsetup remove data");
    }
    in_use(&on_sata("md0"), "0000:00:1f.2", "the array md0", "mdadm --stop /dev/md0");
    // An array on a volume on a disk: each layer is a use.
    let fixture = volume("LVM-x")
        .link("sys/class/block/md1", &format!("{folder}/md1"))
        .link(&format!("{folder}/md1/slaves/dm-0"), &format!("{folder}/dm-0"));
    let what = "the LVM volume data (dm-0), the array md1";
    let remedy = "dmsetup remove data; mdadm --stop /dev/md1";
    in_use(&fixture, "0000:00:1f.2", what, remedy);
}

#[test]
fn bcache_uses_its_cache_and_its_disk() {
    let fixture = host().file(&format!("{SATA}/bcache/running"), "1\n");
    let remedy = "echo 1 > /sys/class/block/sda/bcache/stop";
    in_use(&fixture, "0000:00:1f.2", "bcache (sda)", remedy);
}

#[test]
fn a_loop_device_uses_the_disk_that_it_reads() {
    let folder = "sys/devices/virtual/block/loop0";
    let fixture = |backing: &str| {
        host()
            .link("sys/class/block/loop0", folder)
            .file(&format!("{folder}/loop/backing_file"), format!("{backing}\n"))
    };
    let what = "the loop device loop0 on /dev/sda";
    in_use(&fixture("/dev/sda"), "0000:00:1f.2", what, "losetup -d /dev/loop0");
    // A file is on a mounted file system, which is a use of its own.
    not_in_use(&fixture("/var/disk.img"));
}

#[test]
fn an_nvme_target_uses_the_disk_that_it_exports() {
    let folder = "sys/kernel/config/nvmet/subsystems/nqn/namespaces/1";
    let fixture = |enable: &str| {
        host()
            .file(&format!("{folder}/device_path"), "/dev/sda\n")
            .file(&format!("{folder}/enable"), enable)
    };
    let remedy = format!("echo 0 > /{folder}/enable");
    in_use(&fixture("1\n"), "0000:00:1f.2", "the NVMe target of /dev/sda", &remedy);
    not_in_use(&fixture("0\n"));
}

#[test]
fn a_disk_behind_a_usb_controller_uses_the_controller() {
    let disk = below(USB, "usb1/1-1/1-1:1.0/host6/target6:0:0/6:0:0:0/block/sdb/sdb1");
    let fixture = host().link("sys/dev/block/8:17", &disk);
    let fixture = mounted(fixture, "22 1 8:17 / /backup rw - ext4 /dev/sdb1 rw\n");
    in_use(&fixture, USB, "the file system on /backup (/dev/sdb1)", "umount /backup");
}

#[test]
fn a_bind_mount_and_many_mounts_are_counted() {
    let lines: String = (0..9)
        .map(|n| format!("2{n} 1 259:2 /folder /pod{n} rw - ext4 /dev/nvme0n1p2 rw\n"))
        .collect();
    let (what, remedy) = uses(&mounted(host(), &lines), "0000:00:02.0").unwrap();
    assert!(what.starts_with("the file system on /pod0 (/dev/nvme0n1p2), "), "{what}");
    assert!(what.ends_with("/pod5 (/dev/nvme0n1p2) and 3 more uses"), "{what}");
    assert!(remedy.ends_with("; umount /pod5"), "{remedy}");
}

#[test]
fn an_exclusive_opener_is_a_use_and_may_be_a_pool() {
    let claims = |fixture: &Fixture, node: &str| {
        let tree = fixture.tree();
        let path = tree.path(node);
        let address = "0000:00:02.0".parse().unwrap();
        all_uses(&tree, &[], address, |disk| disk == path)
    };
    let (what, remedy) = claims(&host(), "dev/nvme0n1p3").unwrap();
    let expected = "an exclusive use of /dev/nvme0n1p3 (a file system of a container, or a target)";
    assert_eq!((what.as_str(), remedy), (expected, None));
    let pool = host().file("proc/spl/kstat/zfs/tank/state", "ONLINE\n");
    let (what, _) = claims(&pool, "dev/nvme0n1p3").unwrap();
    assert_eq!(what, "an exclusive use of /dev/nvme0n1p3 (perhaps the ZFS pool tank)");
    assert_eq!(claims(&host(), "dev/sda"), None, "it is another controller's");
}
