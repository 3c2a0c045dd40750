use std::fs;

use tempfile::TempDir;

use super::*;

fn limit(name: &str, hard: &str) -> String {
    format!("{name}   10   {hard}   units\n")
}

/// The text of a shortage, which has these parts.
fn has(result: Result<(), Shortage>, parts: &[&str]) {
    let text = Error::from(result.unwrap_err()).to_string();
    parts.iter().for_each(|part| assert!(text.contains(part), "no {part:?} in: {text}"));
}

#[test]
fn counts_a_file_for_each_vector() {
    assert_eq!(files_needed(1, []), 33);
    assert_eq!(files_needed(2, [65, 1]), 32 + 2 + 65 + 8 + 1 + 8);
    assert_eq!(files_needed(255, [u64::MAX, 5]), u64::MAX);
}

#[test]
fn too_few_files_name_the_needed_number() {
    assert_eq!(files("", 3000), Ok(()));
    assert_eq!(files(&limit("Max open files", "3000"), 3000), Ok(()), "the soft limit is raised");
    assert_eq!(files(&limit("Max open files", "unlimited"), 3000), Ok(()));
    let result = files(&limit("Max open files", "2999"), 3000);
    let parts =
        ["up to 3000 files", "is 2999 (RLIMIT_NOFILE)", "'ulimit -n 3000'", "LimitNOFILE=3000"];
    has(result, &parts);
}

/// A host whose process is in the group `/a/b`.
fn grouped(files: &[(&str, &str)]) -> TempDir {
    tree(&[&[("proc/self/cgroup", "0::/a/b\n")], files].concat())
}

fn tree(files: &[(&str, &str)]) -> TempDir {
    let root = TempDir::new().unwrap();
    for (name, text) in files {
        let path = root.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    root
}

#[test]
fn too_few_threads_name_their_limit() {
    let root = grouped(&[]);
    let limits = limit("Max processes", "5");
    let user =
        |cpus, is_exempt: bool| threads(&Cgroups::of(root.path()), &limits, cpus, || is_exempt);
    assert_eq!((user(2, false), user(200, true)), (Ok(()), Ok(())));
    has(user(3, false), &["--cpus 3 needs 6 threads", "is 5 (RLIMIT_NPROC)", "'ulimit -u 6'"]);

    let root =
        grouped(&[("sys/fs/cgroup/a/pids.max", "20\n"), ("sys/fs/cgroup/a/pids.current", "10\n")]);
    let group = |cpus| threads(&Cgroups::of(root.path()), "", cpus, || true);
    assert_eq!(group(8), Ok(()), "this process is counted already");
    let parts = [
        "--cpus 9 needs 12 threads",
        "10 of 20 left (/sys/fs/cgroup/a/pids.max)",
        "echo 22 >",
        "TasksMax=22",
    ];
    has(group(9), &parts);
}

fn needs(memory: &str, at_once: bool) -> MemoryNeeds {
    MemoryNeeds { memory: memory.parse().unwrap(), cpus: 1, at_once }
}

#[test]
fn too_little_memory_of_the_group_names_the_group() {
    let mib = |mib: u64| format!("{}\n", mib << 20);
    let at = |most: u64, used: u64, file: &str| {
        let file = format!("sys/fs/cgroup/a/{file}");
        let root = grouped(&[
            (file.as_str(), mib(most).as_str()),
            ("sys/fs/cgroup/a/memory.current", mib(used).as_str()),
        ]);
        let of = |needs: MemoryNeeds| memory(&Cgroups::of(root.path()), "", &needs);
        let warned = memory::soft(&Cgroups::of(root.path()), &needs("1G", false));
        (of(needs("1G", true)), of(needs("1G", false)), warned)
    };
    // The limit, what is used, and whether a guest with devices and one without are refused.
    let cases = [
        (1040, 0, [false, false]),
        (1039, 0, [true, true]),
        (1100, 60, [false, false]),
        (1100, 61, [true, false]),
    ];
    for (most, used, refused) in cases {
        let (with, without, warned) = at(most, used, "memory.max");
        assert_eq!([with.is_err(), without.is_err()], refused, "{most} MiB, {used} MiB used");
        assert_eq!(warned.is_err(), refused[0], "{most} MiB, {used} MiB used");
    }
    let (short, ..) = at(1100, 100, "memory.max");
    let parts = [
        "needs 1040 MiB of memory",
        "1000 MiB of 1100 MiB left (/sys/fs/cgroup/a/memory.max)",
        "reduce --memory",
        "echo 1140M > /sys/fs/cgroup/a/memory.max",
        "MemoryMax=1140M",
    ];
    has(short, &parts);
    let (with, without, warned) = at(900, 0, "memory.high");
    assert_eq!((with, without), (Ok(()), Ok(())));
    has(warned, &["memory.high", "slows the VMM down", "MemoryHigh="]);
}

#[test]
fn the_first_device_of_a_running_vmm_needs_the_rest_of_its_ram() {
    let at = |most: u64, used: u64, resident: u64| {
        let (most, used) = (format!("{}\n", most << 20), format!("{}\n", used << 20));
        let status = format!("Name:\tvmm\nVmRSS:\t{} kB\n", resident << 10);
        let root = tree(&[
            ("proc/7/cgroup", "0::/a\n"),
            ("proc/7/status", &status),
            ("sys/fs/cgroup/a/memory.max", &most),
            ("sys/fs/cgroup/a/memory.current", &used),
        ]);
        memory::rest(root.path(), 7, 1 << 30)
    };
    // The RAM's last 1000 MiB, and 8 MiB of page tables.
    assert_eq!(at(1038, 30, 24), Ok(()));
    let parts = [
        "which is 1008 MiB more",
        "control group of the VMM has 1007 MiB of 1037 MiB left (/sys/fs/cgroup/a/memory.max)",
        "echo 1038M > /sys/fs/cgroup/a/memory.max",
        "MemoryMax=1038M",
    ];
    has(at(1037, 30, 24), &parts);
    assert_eq!(memory::rest(tempfile::tempdir().unwrap().path(), 7, 1 << 30), Ok(()));
}

#[test]
fn huge_pages_have_a_limit_of_their_own() {
    let root = grouped(&[
        ("sys/fs/cgroup/a/memory.max", "20971520\n"),
        ("sys/fs/cgroup/a/hugetlb.2MB.max", "67108864\n"),
    ]);
    let of = |asked| memory(&Cgroups::of(root.path()), "", &needs(asked, true));
    assert_eq!(of("size=64M,hugepages=2M"), Ok(()));
    has(
        of("size=66M,hugepages=2M"),
        &["66 MiB of huge pages of 2M", "hugetlb.2MB.max", "echo 66M"],
    );
    has(of("64M"), &["memory.max"]);
}

#[test]
fn limits_of_the_process_apply_to_the_memory() {
    let root = grouped(&[]);
    let cases = [
        ("Max address space", "64M", 129, "RLIMIT_AS"),
        ("Max data size", "64M", 129, "RLIMIT_DATA"),
        ("Max file size", "64M,shared=on", 64, "RLIMIT_FSIZE"),
    ];
    for (name, asked, mib, text) in cases {
        let with = |bytes: u64| {
            let limits = limit(name, &bytes.to_string());
            memory(&Cgroups::of(root.path()), &limits, &needs(asked, true))
        };
        assert_eq!(with(mib << 20), Ok(()), "{name}");
        has(with((mib << 20) - 1), &["guest RAM of 64 MiB", text, "ulimit", "reduce --memory"]);
    }
    let limits = limit("Max data size", "1") + &limit("Max file size", "1");
    assert!(memory(&Cgroups::of(root.path()), &limits, &needs("64M", true)).is_err());
    assert_eq!(
        memory(&Cgroups::of(root.path()), &limit("Max file size", "1"), &needs("64M", true)),
        Ok(())
    );
}

#[test]
fn a_kernel_that_counts_promises_refuses_too_much_memory() {
    let of = |mode: &str, free: u64| {
        let meminfo = format!("CommitLimit: {} kB\nCommitted_AS: 1000 kB\n", free + 1000);
        let root =
            grouped(&[("proc/sys/vm/overcommit_memory", mode), ("proc/meminfo", meminfo.as_str())]);
        over_commit(root.path(), &needs("64M", true))
    };
    let enough = (64 << 10) + 512 + (8 << 10);
    assert_eq!((of("2\n", enough), of("0\n", 0), of("1\n", 0)), (Ok(()), Ok(()), Ok(())));
    has(of("2\n", enough - 1), &["72 MiB", "vm.overcommit_memory is 2", "hugepages=2M"]);
}

#[test]
fn a_low_number_of_mappings_is_reported() {
    let of = |most: &str| mappings(grouped(&[("proc/sys/vm/max_map_count", most)]).path(), 1);
    assert_eq!((of("65530\n"), of("516\n"), of("")), (Ok(()), Ok(()), Ok(())));
    has(of("515\n"), &["up to 516 mappings", "allows 515", "vm.max_map_count"]);
}

/// This changes the limit of the whole process, and no other test depends on it.
#[test]
fn the_limit_on_files_is_raised_to_its_hard_limit() {
    let read = || fs::read_to_string("/proc/self/limits").unwrap();
    let before = Kind::OpenFiles.of(&read()).unwrap();
    let low = before.hard.min(300) - 1;
    Kind::OpenFiles.raise(before, low).unwrap();
    assert_eq!(Kind::OpenFiles.of(&read()).unwrap().soft, low);
    raise_files(&read());
    assert_eq!(Kind::OpenFiles.of(&read()).unwrap().soft, before.hard);
}
