//! The limits of the process and of its control group: known before the guest starts.

use lab::{Device, Error, Guest, L1, WIDE_VECTORS, sha256};

use crate::Test;
use crate::support::{assert_refused, assigned, boot, counter, hashes, take};

/// On a machine with an NVMe first.
pub const TESTS: &[Test] =
    &[("limits: raises the limit of open files, and reports one that is too low", few_files)];

/// For kernels with the control groups of memory and threads.
pub const OF_CGROUPS: &[Test] = &[
    ("limits: reports a control group with too little memory", little_memory),
    ("limits: reports a control group with too few threads", few_threads),
];

/// On a machine with an NVMe of many vectors, whose kernel has fewer and cannot add any later.
pub const ON_WIDE: &[Test] =
    &[("limits: an NVMe works with the vectors that the host has", few_vectors)];

fn guest(l1: &mut L1) -> Result<Guest, Error> {
    Ok(Guest::new("read:20").memory("128M").device(&assigned(l1, 0)?))
}

/// The guest runs with 3 MiB more than the VMM says it needs.
fn little_memory(l1: &mut L1) -> Result<(), Error> {
    let guest = guest(l1)?;
    let parts = [
        "error: the guest needs 137 MiB of memory",
        "of 100 MiB left (/sys/fs/cgroup/lab/memory.max)",
        "reduce --memory",
        "MemoryMax=",
    ];
    assert_refused(&guest.clone().in_cgroup("memory.max", "100M").boot(l1)?, &parts);
    let outcome = boot(l1, &guest.in_cgroup("memory.max", "140M"))?;
    assert_eq!(outcome.stderr, "", "{}", outcome.details());
    Ok(())
}

fn few_threads(l1: &mut L1) -> Result<(), Error> {
    let guest = guest(l1)?.cpus(3);
    let parts =
        ["error: --cpus 3 needs 6 threads", "of 4 left (/sys/fs/cgroup/lab/pids.max)", "TasksMax="];
    assert_refused(&guest.clone().in_cgroup("pids.max", "4").boot(l1)?, &parts);
    boot(l1, &guest.in_cgroup("pids.max", "8")).map(drop)
}

fn few_files(l1: &mut L1) -> Result<(), Error> {
    let guest = guest(l1)?;
    let before_opening = guest.clone().open_files(30, 40).boot(l1)?;
    let parts = ["up to 41 files, and the process's limit is 40 (RLIMIT_NOFILE)", "'ulimit -n 41'"];
    assert_refused(&before_opening, &parts);
    // The vectors of the NVMe are known when it is open.
    let when_open = guest.clone().open_files(50, 105).boot(l1)?;
    let parts = ["up to 106 files, and the process's limit is 105", "LimitNOFILE=106"];
    assert_refused(&when_open, &parts);
    // The program that starts the VMM has the soft limit too.
    let outcome = boot(l1, &guest.open_files(30, 106))?;
    assert!(counter(&outcome, "/vfio_ioctls/set_irqs") > 0, "{}", outcome.details());
    Ok(())
}

/// The guest enables MSI-X, for which VFIO on Linux 6.1 needs all vectors of the table at once.
fn few_vectors(l1: &mut L1) -> Result<(), Error> {
    let device = take(l1, Device::WideNvme)?;
    let index = l1.machine().devices.iter().position(|own| *own == Device::WideNvme).unwrap();
    let expected = sha256(&l1.image(index)?[..1 << 20]);
    let asked = format!("of the {WIDE_VECTORS} vectors that the guest uses");
    let guest = Guest::new("hash:1M,read:20").memory("128M").device(&device).logs(&asked);
    let outcome = boot(l1, &guest)?;
    assert_eq!(hashes(&outcome), [expected], "{}", outcome.details());
    let lines: Vec<&str> = outcome.stderr.lines().collect();
    let is_named = |line: &&str| line.contains(&device) && line.contains(&asked);
    assert!(lines.len() == 1 && lines.iter().all(is_named), "{}", outcome.details());
    Ok(())
}
