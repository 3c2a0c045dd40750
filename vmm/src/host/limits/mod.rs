//! What a guest needs of the host's limits: checked before anything is opened, for a guest and for
//! `vmm check`.
//!
//! Each function takes the root folder of `/proc` and `/sys`, so that tests can use fake trees.

mod cgroup;
mod files;
mod memory;
mod rlimits;
mod running;
mod shortage;

use std::path::Path;

use nix::unistd::geteuid;

use crate::config::Config;
use crate::error::Error;

pub(crate) use cgroup::Cgroups;
use cgroup::Controller;
pub(crate) use files::{files, files_needed};
pub(crate) use memory::{MemoryNeeds, hard as memory, high, over_commit, rest as memory_left};
use rlimits::Kind;
pub(crate) use running::RunningLimits;
pub(crate) use shortage::Shortage;
use shortage::within;

/// The limit on open files: the text of `/proc/self/limits`.
pub(crate) struct FileLimit(String);

/// The threads besides one for each vCPU: the main thread, that of `--control`, and one of KVM.
const THREADS: u64 = 3;

/// The number of threads that a VMM has, at most, once its guest runs.
pub(crate) fn threads_needed(cpus: u8) -> u64 {
    u64::from(cpus).saturating_add(THREADS)
}

/// Checks all limits that are known before a device is opened, and raises those that are too low up
/// to their hard limits. `/proc` or `/sys` that cannot be read count as no limit.
/// Returns the limit on files, which is checked again later.
pub(crate) fn check(config: &Config) -> Result<FileLimit, Error> {
    let root = Path::new("/");
    let limits = cgroup::read(&root.join("proc/self/limits")).unwrap_or_default();
    raise_files(&limits);
    files(&limits, files_needed(config.cpus, config.vfio.iter().map(|_| 0)))?;
    let groups = Cgroups::of(root);
    threads(&groups, &limits, config.cpus, is_root)?;
    let needs = MemoryNeeds::of(config);
    for (kind, needed) in needs.limited() {
        raise(kind, &limits, needed);
    }
    memory(&groups, &limits, &needs)?;
    if let Err(shortage) = memory::soft(&groups, &needs) {
        log::warn!("{}; {}", shortage.what, shortage.remedy);
    }
    Ok(FileLimit(limits))
}

impl FileLimit {
    /// Checks the number of files again, when the vectors of the devices are known.
    pub(crate) fn check(
        &self,
        cpus: u8,
        vectors: impl IntoIterator<Item = u64>,
    ) -> Result<(), Error> {
        Ok(files(&self.0, files_needed(cpus, vectors))?)
    }
}

/// Raises the limit on open files to its hard limit: each interrupt vector takes a file.
fn raise_files(limits: &str) {
    if let Some(limit) = Kind::OpenFiles.of(limits) {
        raise(Kind::OpenFiles, limits, limit.hard);
    }
}

/// Raises a limit to `needed`, as far as its hard limit allows.
fn raise(kind: Kind, limits: &str, needed: u64) {
    let Some(limit) = kind.of(limits).filter(|limit| limit.soft < needed.min(limit.hard)) else {
        return;
    };
    let (name, value) = (kind.name(), needed.min(limit.hard));
    match kind.raise(limit, value) {
        Ok(()) => log::info!("raised {name} from {} to {value}", limit.soft),
        Err(error) => log::debug!("setrlimit({name}, {value}): {error}"),
    }
}

/// The kernel does not limit the threads of root.
pub(crate) fn is_root() -> bool {
    geteuid().is_root()
}

/// Checks that the threads of the VMM can start. The threads that the user has in other processes
/// are not counted: that takes a walk through all of `/proc`.
pub(crate) fn threads(
    groups: &Cgroups,
    limits: &str,
    cpus: u8,
    is_exempt: impl FnOnce() -> bool,
) -> Result<(), Shortage> {
    let needed = threads_needed(cpus);
    let own = within(Kind::Threads, limits, needed, |hard| {
        format!("--cpus {cpus} needs {needed} threads, and the limit of this user is {hard}")
    });
    own.or_else(|shortage| if is_exempt() { Ok(()) } else { Err(shortage) })?;
    match groups.lacking(Controller::Threads, needed.saturating_sub(1)) {
        None => Ok(()),
        Some(limit) => {
            let (file, free) = (groups.shown(&limit.file), limit.free());
            let enough = limit.used.saturating_add(needed);
            Err(Shortage {
                what: format!(
                    "--cpus {cpus} needs {needed} threads, and the control group of this process \
                     has {free} of {} left ({file})",
                    limit.most
                ),
                remedy: format!(
                    "reduce --cpus, or raise the limit with: echo {enough} > {file}, or \
                     'TasksMax={enough}' in a systemd unit"
                ),
            })
        }
    }
}

/// The mappings of a process without vCPUs, at most: libraries, RAM and BARs.
const MAPPINGS: u64 = 512;
/// The mappings of a vCPU: its stack with a guard page, and its shared pages.
const MAPPINGS_OF_CPU: u64 = 4;

/// Checks the number of mappings that a process can have.
pub(crate) fn mappings(root: &Path, cpus: u8) -> Result<(), Shortage> {
    let text = cgroup::read(&root.join("proc/sys/vm/max_map_count"));
    let most = text.and_then(|text| text.trim().parse::<u64>().ok());
    let needed = u64::from(cpus).saturating_mul(MAPPINGS_OF_CPU).saturating_add(MAPPINGS);
    match most.filter(|most| *most < needed) {
        None => Ok(()),
        Some(most) => Err(Shortage {
            what: format!("the VMM has up to {needed} mappings, and the host allows {most}"),
            remedy: "sysctl vm.max_map_count=65530".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests;
