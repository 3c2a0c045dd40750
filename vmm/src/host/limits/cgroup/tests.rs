use std::fs;

use tempfile::TempDir;

use super::*;

const UNLIMITED_V1: &str = "9223372036854771712\n";

/// A host with these files.
fn host(files: &[(&str, &str)]) -> TempDir {
    let root = TempDir::new().unwrap();
    for (name, text) in files {
        let path = root.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    root
}

/// The file of the limit that lacks 100 bytes or threads, and what is free of it.
fn found(files: &[(&str, &str)], controller: Controller) -> Option<(String, u64)> {
    let root = host(files);
    let limit = Cgroups::of(root.path()).lacking(controller, 100)?;
    let file = limit.file.strip_prefix(root.path().join("sys/fs/cgroup")).unwrap();
    Some((file.display().to_string(), limit.free()))
}

/// Files, the file of the limit that is found, and what is free of it.
type Case<'a> = (&'a [(&'a str, &'a str)], Option<(&'a str, u64)>);

#[test]
fn finds_the_lowest_group_that_has_too_little() {
    let own = ("proc/self/cgroup", "0::/a/b\n");
    let at = |place: &'static str, text: &'static str| (place, text);
    let group = "sys/fs/cgroup/a/b/memory.max";
    let parent = "sys/fs/cgroup/a/memory.max";
    let namespace = "sys/fs/cgroup/memory.max";
    let used = ("sys/fs/cgroup/a/memory.current", "60\n");
    let cases: [Case<'_>; 9] = [
        (&[own], None),
        (&[own, at(group, "max\n"), at(parent, "max\n")], None),
        (&[own, at(group, "100\n")], None),
        (&[own, at(group, "99\n")], Some(("a/b/memory.max", 99))),
        (&[own, at(group, "max\n"), at(parent, "159\n"), used], Some(("a/memory.max", 99))),
        (&[own, at(group, "max\n"), at(parent, "160\n"), used], None),
        (&[own, at(group, "99\n"), at(parent, "0\n")], Some(("a/b/memory.max", 99))),
        // A container's namespace: its root has a limit.
        (&[own, at(namespace, "7\n")], Some(("memory.max", 7))),
        (&[own, at(group, "garbage\n")], None),
    ];
    for (files, expected) in cases {
        let expected = expected.map(|(file, free)| (file.to_owned(), free));
        assert_eq!(found(files, Controller::Memory), expected, "{files:?}");
    }
}

#[test]
fn knows_both_versions_and_every_controller() {
    let hybrid = "5:pids:/p\n4:cpu,memory:/m\n3:hugetlb:/h\n0::/ignored\n";
    let two = Controller::HugePages(HugePages::Size2M);
    let one = Controller::HugePages(HugePages::Size1G);
    let cases = [
        ("0::/g\n", "g/memory.max", Controller::Memory, "g/memory.max"),
        ("0::/g\n", "g/memory.high", Controller::MemoryHigh, "g/memory.high"),
        ("0::/g\n", "g/pids.max", Controller::Threads, "g/pids.max"),
        ("0::/g\n", "g/hugetlb.2MB.max", two, "g/hugetlb.2MB.max"),
        ("0::/g\n", "g/hugetlb.1GB.max", one, "g/hugetlb.1GB.max"),
        (
            hybrid,
            "memory/m/memory.limit_in_bytes",
            Controller::Memory,
            "memory/m/memory.limit_in_bytes",
        ),
        (hybrid, "pids/p/pids.max", Controller::Threads, "pids/p/pids.max"),
        (
            hybrid,
            "hugetlb/h/hugetlb.2MB.limit_in_bytes",
            two,
            "hugetlb/h/hugetlb.2MB.limit_in_bytes",
        ),
        // A container of version 1 whose path is that of the host.
        (
            "4:memory:/docker/x\n",
            "memory/memory.limit_in_bytes",
            Controller::Memory,
            "memory/memory.limit_in_bytes",
        ),
        // A path above the namespace's root.
        ("0::/../../g\n", "memory.max", Controller::Memory, "memory.max"),
    ];
    for (memberships, place, controller, expected) in cases {
        let place = format!("sys/fs/cgroup/{place}");
        let files = [("proc/self/cgroup", memberships), (place.as_str(), "50\n")];
        assert_eq!(found(&files, controller), Some((expected.to_owned(), 50)), "{memberships:?}");
        let unlimited = [files[0], (place.as_str(), UNLIMITED_V1)];
        assert_eq!(found(&unlimited, controller), None, "{memberships:?}");
    }
}

#[test]
fn the_page_cache_counts_as_free() {
    let cases = [("file 60\nshmem 0\n", None), ("file 60\nshmem 1\n", Some(99)), ("", Some(40))];
    for (stat, free) in cases {
        let files = [
            ("proc/self/cgroup", "0::/g\n"),
            ("sys/fs/cgroup/g/memory.max", "140\n"),
            ("sys/fs/cgroup/g/memory.current", "100\n"),
            ("sys/fs/cgroup/g/memory.stat", stat),
        ];
        let found = found(&files, Controller::Memory);
        assert_eq!(found.map(|(_, free)| free), free, "{stat:?}");
    }
}

#[test]
fn a_host_without_control_groups_has_no_limit() {
    for memberships in ["", "garbage\n", "0:\n", "1:name=systemd:/\n"] {
        let files = [("proc/self/cgroup", memberships), ("sys/fs/cgroup/memory.max", "0\n")];
        assert_eq!(found(&files, Controller::Memory), None, "{memberships:?}");
    }
    assert_eq!(Cgroups::of(Path::new("/nonexistent")).lacking(Controller::Memory, 1), None);
}
