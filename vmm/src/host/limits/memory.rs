//! The memory of a guest, and the limits on it.

use std::path::Path;

use super::cgroup::{Cgroups, Controller, Limit, read};
use super::rlimits::Kind;
use super::shortage::{Shortage, within};
use crate::config::{Config, Memory};

/// What a guest needs of the host's memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MemoryNeeds {
    pub(crate) memory: Memory,
    pub(crate) cpus: u8,
    /// The kernel allocates all RAM before the guest starts: devices need it, or the user asks.
    pub(crate) at_once: bool,
}

/// The VMM itself, and the kernel's memory for a VM.
const OVERHEAD: u64 = 8 << 20;
/// The page tables of CPU and IOMMU, and those of the process: 8 bytes each for a page of 4 KiB.
const PAGE_TABLES: u64 = 128;
/// The VMM's own address space: libraries, heap and logs.
const OWN_SPACE: u64 = 64 << 20;
/// The address space of a vCPU: its stack, with the guard page, and its shared pages.
const SPACE_OF_CPU: u64 = 1 << 20;

impl MemoryNeeds {
    pub(crate) fn of(config: &Config) -> Self {
        let at_once = config.memory.prefault.unwrap_or(!config.vfio.is_empty());
        let at_once = at_once || !config.vfio.is_empty();
        Self { memory: config.memory, cpus: config.cpus, at_once }
    }

    /// The bytes that count as memory of the process. Huge pages are counted apart.
    fn charged(&self) -> u64 {
        let ram = self.memory.bytes();
        let own = OVERHEAD.saturating_add(ram / PAGE_TABLES);
        match self.memory.hugepages {
            Some(_) => own,
            None => own.saturating_add(ram),
        }
    }

    /// The limits of the process that apply, with the bytes that are needed of each.
    pub(crate) fn limited(&self) -> Vec<(Kind, u64)> {
        let own = u64::from(self.cpus).saturating_mul(SPACE_OF_CPU).saturating_add(OWN_SPACE);
        let space = self.memory.bytes().saturating_add(own);
        // Private memory counts as data (mmap(2)); a memfd is a file.
        let kind = if self.memory.shared { Kind::FileSize } else { Kind::Data };
        let size = if self.memory.shared { self.memory.bytes() } else { space };
        vec![(Kind::AddressSpace, space), (kind, size)]
    }
}

/// Checks the limits above which the kernel refuses memory or kills the process.
pub(crate) fn hard(groups: &Cgroups, limits: &str, needs: &MemoryNeeds) -> Result<(), Shortage> {
    let ram = needs.memory.bytes() >> 20;
    for (kind, needed) in needs.limited() {
        within(kind, limits, needed, |most| {
            let (needed, most) = (needed.div_ceil(1 << 20), most >> 20);
            format!("guest RAM of {ram} MiB needs {needed} MiB, and the limit of this process is {most} MiB")
        })
        .map_err(|short| Shortage {
            remedy: format!("reduce --memory, or {}", short.remedy),
            ..short
        })?;
    }
    if let Some(page) = needs.memory.hugepages {
        let found = groups.lacking(Controller::HugePages(page), needs.memory.bytes());
        refuse(groups, found, needs.memory.bytes(), &format!("huge pages of {page}"))?;
    }
    let needed = needs.charged();
    match groups.lacking(Controller::Memory, needed) {
        Some(limit) if needs.at_once || limit.most < needed => {
            refuse(groups, Some(limit), needed, "memory")
        }
        _ => Ok(()),
    }
}

/// Checks the limits with which a guest starts, and may fail later.
pub(super) fn soft(groups: &Cgroups, needs: &MemoryNeeds) -> Result<(), Shortage> {
    let needed = needs.charged();
    // Where all memory is needed at once, `hard` has refused this.
    let rest = (!needs.at_once).then(|| groups.lacking(Controller::Memory, needed)).flatten();
    refuse(groups, rest, needed, "memory")?;
    high(groups, needs)
}

/// Checks the limit above which the kernel lets the VMM wait, which looks like a VMM that hangs.
pub(crate) fn high(groups: &Cgroups, needs: &MemoryNeeds) -> Result<(), Shortage> {
    let needed = needs.charged();
    let limit = groups.lacking(Controller::MemoryHigh, needed);
    refuse(groups, limit, needed, "memory").map_err(|short| Shortage {
        what: format!("{}: the kernel slows the VMM down", short.what),
        remedy: short.remedy.replace("MemoryMax=", "MemoryHigh="),
    })
}

/// Checks that a running VMM can have the rest of its RAM, which the kernel allocates when the first
/// device comes. `pid` is the VMM's, and `ram` the bytes of its RAM in ordinary pages.
pub(crate) fn rest(root: &Path, pid: i32, ram: u64) -> Result<(), Shortage> {
    let groups = Cgroups::of_process(root, &pid.to_string());
    let status = read(&root.join(format!("proc/{pid}/status"))).unwrap_or_default();
    let resident = kib(&status, "VmRSS:").unwrap_or(0).saturating_mul(1024);
    // The IOMMU's page tables count too.
    let needed = ram.saturating_sub(resident).saturating_add(ram / PAGE_TABLES);
    match groups.lacking(Controller::Memory, needed) {
        None => Ok(()),
        Some(limit) => {
            let [needs, free, most] = [needed, limit.free(), limit.most].map(|bytes| bytes >> 20);
            let file = groups.shown(&limit.file);
            let what = format!(
                "the first device needs all of the guest's RAM, which is {needs} MiB more, and the \
                 control group of the VMM has {free} MiB of {most} MiB left ({file})"
            );
            Err(Shortage { what, remedy: raised(&file, &limit, needed, true) })
        }
    }
}

/// How a user raises the limit in `file`, so that `needed` bytes more are in it.
fn raised(file: &str, limit: &Limit, needed: u64, in_unit: bool) -> String {
    let enough = limit.used.saturating_add(needed).div_ceil(1 << 20);
    let unit = format!(", or 'MemoryMax={enough}M' in a systemd unit");
    let unit = if in_unit { unit.as_str() } else { "" };
    format!("raise the limit with: echo {enough}M > {file}{unit}")
}

fn refuse(groups: &Cgroups, limit: Option<Limit>, needed: u64, what: &str) -> Result<(), Shortage> {
    let Some(limit) = limit else {
        return Ok(());
    };
    let file = groups.shown(&limit.file);
    let [needs, free, most] = [needed, limit.free(), limit.most].map(|bytes| bytes >> 20);
    let raised = raised(&file, &limit, needed, what == "memory");
    Err(Shortage {
        what: format!(
            "the guest needs {needs} MiB of {what}, and the control group of this process has \
             {free} MiB of {most} MiB left ({file})"
        ),
        remedy: format!("reduce --memory, or {raised}"),
    })
}

/// Checks that the kernel accepts the memory if it counts all that processes may use
/// (Documentation/mm/overcommit-accounting.rst).
pub(crate) fn over_commit(root: &Path, needs: &MemoryNeeds) -> Result<(), Shortage> {
    let mode = read(&root.join("proc/sys/vm/overcommit_memory")).unwrap_or_default();
    let meminfo = read(&root.join("proc/meminfo")).unwrap_or_default();
    let free = kib(&meminfo, "CommitLimit:").zip(kib(&meminfo, "Committed_AS:"));
    let free = free.map(|(most, used)| most.saturating_sub(used));
    let needed = needs.charged();
    match free.filter(|free| mode.trim() == "2" && *free < needed >> 10) {
        None => Ok(()),
        Some(free) => Err(Shortage {
            what: format!(
                "the guest needs {} MiB of memory, and the host's kernel promises only {} MiB more \
                 (vm.overcommit_memory is 2)",
                needed >> 20,
                free >> 10
            ),
            remedy:
                "reduce --memory, use huge pages (--memory size=SIZE,hugepages=2M), or: sysctl \
                     vm.overcommit_memory=0"
                    .to_owned(),
        }),
    }
}

/// The number of a line such as `VmRSS:  1234 kB` of a file in `/proc`, in KiB.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}
