//! The checks of the limits of the process, of its control group, and of the host.

use super::super::inventory::Inventory;
use super::line::Line;
use crate::config::Memory;
use crate::host::limits::{self, Cgroups, MemoryNeeds, Shortage};

/// The number of vCPUs, with which nothing else can be counted: `vmm check` is not asked for more.
const CPUS: u8 = 1;

/// A line for each limit. `vectors` has the number of interrupt vectors of each device.
pub(crate) fn lines(
    host: &Inventory,
    asked: Memory,
    vectors: impl IntoIterator<Item = u64>,
) -> Vec<Line> {
    let root = host.tree.path("");
    let groups = Cgroups::of(&root);
    let limits = host.tree.text("proc/self/limits").unwrap_or_default();
    let needs = MemoryNeeds { memory: asked, cpus: CPUS, at_once: true };
    let files = limits::files_needed(0, vectors);
    let threads = limits::threads(&groups, &limits, CPUS, limits::is_root);
    vec![
        memory_limit(limits::memory(&groups, &limits, &needs), limits::high(&groups, &needs)),
        checked("overcommit", limits::over_commit(&root, &needs), "the kernel promises the memory"),
        checked("threads", threads, "the limits allow the threads of the VMM"),
        checked("mappings", limits::mappings(&root, CPUS), "vm.max_map_count allows the mappings"),
        checked(
            "open-files",
            limits::files(&limits, files),
            &format!("the VMM opens up to {files} files, within the limit"),
        ),
    ]
}

fn checked(check: &'static str, result: Result<(), Shortage>, ok: &str) -> Line {
    match result {
        Ok(()) => Line::ok(check, ok),
        Err(Shortage { what, remedy }) => Line::fail(check, what, remedy),
    }
}

fn memory_limit(hard: Result<(), Shortage>, high: Result<(), Shortage>) -> Line {
    let check = "memory-limits";
    match (hard, high) {
        (Ok(()), Err(Shortage { what, remedy })) => Line::warning(check, what, remedy),
        (hard, _) => checked(
            check,
            hard,
            "the limits of the process and of its control group allow the memory",
        ),
    }
}
