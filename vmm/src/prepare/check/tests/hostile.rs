//! Files that no kernel creates: every check still answers.

use proptest::prelude::*;

use super::super::super::inventory::Inventory;
use super::super::super::tree::Tree;
use super::*;

#[test]
fn unreadable_files_count_as_missing() {
    let device = "sys/bus/pci/devices/0000:00:02.0";
    let names =
        ["vendor", "modalias", "class", "resource", "config", "reset_method", "driver_override"];
    for name in names {
        let fixture = good();
        let path = fixture.path(&format!("{device}/{name}"));
        std::fs::remove_file(&path).unwrap();
        checked(&fixture, &probes());
        std::os::unix::fs::symlink(&path, &path).unwrap();
        checked(&fixture, &probes());
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        let lines = checked(&fixture, &probes());
        assert!(lines.iter().any(|line| line.check == "driver" && line.status == Status::Ok));
    }
    let nothing = Inventory::new(Tree::at("/nonexistent"));
    assert_eq!(nothing.devices(), []);
}

#[test]
fn an_invalid_link_is_no_driver_and_no_group() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::symlink;

    let device = "sys/bus/pci/devices/0000:00:02.0";
    for target in [&b"driver"[..], b"/", b"\xff\xfe", b".."] {
        let fixture = good();
        for name in ["driver", "iommu_group"] {
            let path = fixture.path(&format!("{device}/{name}"));
            std::fs::remove_file(&path).unwrap();
            symlink(OsStr::from_bytes(target), &path).unwrap();
        }
        let (heads, _) = complaints(&checked(&fixture, &probes()));
        assert_eq!(heads, ["driver Fail", "group Fail"], "{target:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// For any contents there is an answer, with one line per check for a terminal.
    #[test]
    fn any_content_of_files_gets_an_answer(
        contents in prop::collection::vec(prop_oneof![
            prop::collection::vec(any::<u8>(), 0..600),
            "[0-9a-fx \n\t:-]{0,200}".prop_map(String::into_bytes),
            "(0x[0-9a-f]{0,18} 0x[0-9a-f]{0,18} (0x[0-9a-f]{0,8}|msi|direct)\n){0,8}".prop_map(String::into_bytes),
        ], 13)
    ) {
        let device = "sys/bus/pci/devices/0000:00:02.0";
        let names = [
            "vendor",
            "device",
            "modalias",
            "class",
            "resource",
            "config",
            "reset_method",
            "driver_override",
        ];
        let names = names.iter().map(|name| format!("{device}/{name}"));
        let names = names.chain([
            "sys/kernel/iommu_groups/7/reserved_regions".to_owned(),
            "proc/interrupts".to_owned(),
            "proc/self/limits".to_owned(),
            "usr/share/misc/pci.ids".to_owned(),
            "proc/cpuinfo".to_owned(),
        ]);
        let fixture = names.zip(&contents).fold(good(), |fixture, (name, bytes)| fixture.file(&name, bytes));
        let lines = checked(&fixture, &probes());
        prop_assert_eq!(lines.iter().filter(|line| line.check == "driver").count(), 1);
        let text = table::checks(&lines);
        prop_assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{:?}", text);
    }
}
