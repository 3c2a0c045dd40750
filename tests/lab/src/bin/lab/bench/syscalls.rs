//! The system calls of a boot, from the output of strace.

use std::collections::BTreeMap;

use serde::Serialize;

use super::measure::Figures;
use super::table::row;

/// The number of system calls that the table names.
const NAMED_CALLS: usize = 40;

/// The system calls of a program and its threads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Syscalls {
    /// The number of calls.
    pub total: u64,
    /// The number of calls by name, the largest first. The name of an `ioctl` includes its request.
    pub by_name: Vec<(String, u64)>,
}

impl Syscalls {
    /// Counts the calls in the output of `strace -f -o`, in which a line has a thread ID and a
    /// call.
    pub fn of(trace: &str) -> Self {
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        for name in trace.lines().filter_map(name) {
            let count = counts.entry(name).or_default();
            *count = count.saturating_add(1);
        }
        let mut by_name: Vec<_> = counts.into_iter().collect();
        by_name.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        Self { total: by_name.iter().map(|(_, count)| *count).sum(), by_name }
    }

    /// The number of calls with this name.
    fn count(&self, name: &str) -> u64 {
        let mut named = self.by_name.iter();
        named.find(|(own, _)| own == name).map_or(0, |(_, count)| *count)
    }

    /// The number of calls without `KVM_RUN`, because the table counts exits separately.
    pub fn without_runs(&self) -> u64 {
        self.total.saturating_sub(self.count("ioctl KVM_RUN"))
    }
}

/// The name of the call on a line. `None` for other lines: a signal, the end of a thread, or the
/// second half of a call that a call of another thread interrupted.
fn name(line: &str) -> Option<String> {
    let (_, call) = line.split_once(' ')?;
    let (name, arguments) = call.trim_start().split_once('(')?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || !name.chars().all(is_name) {
        return None;
    }
    let mut arguments = arguments.split([',', ')']).map(str::trim);
    Some(match (name, arguments.nth(1)) {
        ("ioctl", Some(request)) => {
            format!("ioctl {}", request.split(' ').next().unwrap_or(request))
        }
        _ => name.to_owned(),
    })
}

/// The system calls of all VMMs as a Markdown table. The last VMM's are named, the most frequent
/// first.
pub fn table(figures: &[Figures]) -> String {
    let mut text = row("system call", figures, |figures| figures.vmm.name().to_owned());
    text.push_str(&format!("|---|{}\n", "---|".repeat(figures.len())));
    let named = figures.last().map_or(&[][..], |ours| &ours.syscalls.by_name);
    for (name, _) in named.iter().take(NAMED_CALLS) {
        text.push_str(&row(name, figures, |figures| figures.syscalls.count(name).to_string()));
    }
    text + &row("all", figures, |figures| figures.syscalls.total.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_every_call_once_and_ioctls_by_request() {
        let trace = "\
17 execve(\"/tmp/vmm\", [\"/tmp/vmm\"], 0x7ffd /* 3 vars */) = 0
17 ioctl(5, KVM_RUN, 0)                    = 0
18 ioctl(5, KVM_RUN <unfinished ...>
17 getpid()                                = 17
18 <... ioctl resumed>, 0)                 = -1 EINTR (Interrupted system call)
18 --- SIGRTMIN {si_signo=SIGRTMIN} ---
18 ioctl(7, _IOC(_IOC_WRITE, 0x3b, 0x71, 0), 0x7ffd) = 0
18 +++ exited with 0 +++
";
        let calls = Syscalls::of(trace);
        let named: Vec<_> =
            calls.by_name.iter().map(|(name, count)| (name.as_str(), *count)).collect();
        let expected =
            [("ioctl KVM_RUN", 2), ("execve", 1), ("getpid", 1), ("ioctl _IOC(_IOC_WRITE", 1)];
        assert_eq!((calls.total, named.as_slice()), (5, expected.as_slice()));
        assert_eq!(calls.without_runs(), 3);
        assert_eq!(Syscalls::of(""), Syscalls::default());
    }
}
