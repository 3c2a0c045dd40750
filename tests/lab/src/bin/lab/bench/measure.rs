//! One boot, and what it shows.

use guest::{Report, reports};
use lab::protocol::{Ending, Program, Sighting, Trigger};
use lab::{Error, L1, Run};
use serde::Serialize;

use super::HOST;

/// What the guest's init prints first.
const INIT: &str = "\"report\":\"init\"";

/// Counters of all VMs that live (Documentation/virt/kvm: debugfs).
const EXITS: &str = "/sys/kernel/debug/kvm/exits";
const MMIO_EXITS: &str = "/sys/kernel/debug/kvm/mmio_exits";
const PORT_EXITS: &str = "/sys/kernel/debug/kvm/io_exits";
const SMAPS: &str = "/proc/{pid}/smaps";

/// Where strace writes its summary, as seen in the host's root.
const STRACE: &str = "/tmp/strace";

/// The guest's RAM.
const MEMORY_MIB: u64 = 512;

/// A program that boots the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Vmm {
    /// The host's.
    Qemu,
    /// This project's.
    Ours,
}

/// All that was measured of one VMM.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// Of which.
    pub vmm: Vmm,
    /// All that it and its threads made in one boot.
    pub syscalls: u64,
    /// In order.
    pub boots: Vec<Boot>,
}

/// One boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Boot {
    /// From exec to the first word of the guest's init.
    pub to_init_ns: u64,
    /// Of any kind, up to then.
    pub exits: u64,
    /// Those that userspace served for memory.
    pub mmio_exits: u64,
    /// Those for ports.
    pub port_exits: u64,
    /// Resident memory of the process besides the guest's RAM.
    pub overhead_kib: u64,
    /// A 4 KiB read, with one at a time; the median.
    pub read_ns: u64,
}

impl Figures {
    /// Nothing measured yet.
    pub fn new(vmm: Vmm) -> Self {
        Self {
            vmm,
            syscalls: 0,
            boots: Vec::new(),
        }
    }

    /// The median over all boots of one of their figures.
    pub fn median(&self, figure: impl Fn(&Boot) -> u64) -> u64 {
        let mut values: Vec<u64> = self.boots.iter().map(figure).collect();
        values.sort_unstable();
        values.get(values.len() / 2).copied().unwrap_or_default()
    }
}

impl Vmm {
    /// As people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qemu => "QEMU",
            Self::Ours => "vmm",
        }
    }

    /// Boots the guest once.
    pub fn boot(self, l1: &mut L1, reads: u32) -> Result<Boot, Error> {
        let files = [EXITS, MMIO_EXITS, PORT_EXITS, SMAPS].map(str::to_owned).to_vec();
        // The guest waits after its first word, so what is looked at then stands still.
        let arguments = self.arguments(l1, &format!("pause:300,read:{reads},end:off"));
        let triggers = vec![Trigger {
            marker: INIT.into(),
            files,
            ..Trigger::default()
        }];
        let run = l1.run(Program {
            arguments,
            triggers,
            root: Some(HOST.into()),
            ..Program::default()
        })?;
        boot_of(&run).ok_or_else(|| self.failed(&run))
    }

    /// Counts the system calls of a boot.
    pub fn syscalls(self, l1: &mut L1) -> Result<u64, Error> {
        let strace = ["/usr/bin/strace", "-f", "-c", "-o", STRACE].map(str::to_owned);
        let arguments = [strace.as_slice(), &self.arguments(l1, "end:off")].concat();
        let run = l1.run(Program {
            arguments,
            root: Some(HOST.into()),
            ..Program::default()
        })?;
        let summary = l1.read(&format!("{HOST}{STRACE}"))?;
        match (run.finished.ending, total_calls(&summary)) {
            (Ending::Status(0), Some(calls)) => Ok(calls),
            _ => Err(self.failed(&run)),
        }
    }

    fn arguments(self, l1: &L1, steps: &str) -> Vec<String> {
        let device = l1.machine().address(0);
        let text = match self {
            Self::Qemu => format!(
                "/usr/bin/qemu-system-x86_64 -machine q35 -accel kvm -cpu host -smp 1 -m {MEMORY_MIB} -nodefaults \
                 -nographic -no-reboot -serial stdio -device vfio-pci,host={device} -kernel /tmp/kernel \
                 -initrd /tmp/initrd -append"
            ),
            Self::Ours => format!(
                "/tmp/vmm --memory {MEMORY_MIB}M --cpus 1 --vfio {device} --kernel /tmp/kernel \
                 --initrd /tmp/initrd --cmdline"
            ),
        };
        let command_line = format!("console=ttyS0 quiet panic=-1 guest.do={steps}");
        text.split_whitespace()
            .map(str::to_owned)
            .chain([command_line])
            .collect()
    }

    fn failed(self, run: &Run) -> Error {
        let why = format!("{:?}\n{}\n{}", run.finished.ending, run.stderr, run.stdout);
        Error::Command {
            command: format!("{} in L1", self.name()),
            why,
        }
    }
}

/// None if the guest did not get through.
fn boot_of(run: &Run) -> Option<Boot> {
    let seen = run.finished.sightings.first()?;
    let read_ns = reports(&run.stdout).iter().find_map(|report| match report {
        Report::Read { median_ns, .. } => Some(*median_ns),
        _ => None,
    })?;
    Some(Boot {
        to_init_ns: seen.after_ns,
        exits: number(seen, EXITS)?,
        mmio_exits: number(seen, MMIO_EXITS)?,
        port_exits: number(seen, PORT_EXITS)?,
        overhead_kib: overhead_kib(seen.files.get(SMAPS)?),
        read_ns,
    })
}

fn number(seen: &Sighting, file: &str) -> Option<u64> {
    seen.files.get(file)?.trim().parse().ok()
}

/// Proportional resident size of all mappings but the guest's RAM, which is by far the largest.
fn overhead_kib(smaps: &str) -> u64 {
    let (mut sum, mut is_ram) = (0u64, false);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let value =
            |mut words: std::str::SplitWhitespace<'_>| words.next().and_then(|n| n.parse::<u64>().ok());
        match words.next() {
            Some("Size:") => is_ram = value(words).is_some_and(|kib| kib >= MEMORY_MIB * 1024 / 2),
            Some("Pss:") if !is_ram => sum = sum.saturating_add(value(words).unwrap_or_default()),
            _ => {}
        }
    }
    sum
}

/// The total in the summary of `strace -c`: share, seconds, time per call, calls, and errors if any.
fn total_calls(summary: &str) -> Option<u64> {
    let total = summary.lines().find(|line| line.trim_end().ends_with(" total"))?;
    total.split_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_ram_is_not_overhead() {
        let smaps = "\
7f0000000000-7f0020000000 rw-p 00000000 00:00 0
Size:             524288 kB
Rss:              524288 kB
Pss:              524288 kB
7f1000000000-7f1000100000 r-xp 00000000 00:00 0 /vmm
Size:               1024 kB
Rss:                 900 kB
Pss:                 700 kB
Pss_Dirty:           600 kB
";
        assert_eq!(overhead_kib(smaps), 700);
    }

    #[test]
    fn strace_counts_calls_with_and_without_errors() {
        let summary = "\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 90.00    0.100000          10     10000           ioctl
100.00    0.110000          10     10020         3 total
";
        assert_eq!(total_calls(summary), Some(10_020));
        assert_eq!(total_calls(""), None);
    }

    #[test]
    fn the_median_is_the_middle() {
        let boot = |to_init_ns| Boot {
            to_init_ns,
            exits: 0,
            mmio_exits: 0,
            port_exits: 0,
            overhead_kib: 0,
            read_ns: 0,
        };
        let figures = Figures {
            vmm: Vmm::Ours,
            syscalls: 0,
            boots: [9, 1, 5].map(boot).to_vec(),
        };
        assert_eq!(figures.median(|boot| boot.to_init_ns), 5);
    }
}
