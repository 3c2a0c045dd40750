//! One boot, and what it shows.

use guest::{Report, reports};
use lab::protocol::{Ending, Program, Sighting, Trigger};
use lab::{Error, L1, Run};
use serde::Serialize;
use serde_json::Value;

use super::HOST;
use super::syscalls::Syscalls;

/// What the guest's init prints first.
const INIT: &str = "\"report\":\"up\"";

/// Counters of all VMs that live (Documentation/virt/kvm: debugfs).
const EXITS: &str = "/sys/kernel/debug/kvm/exits";
const MMIO_EXITS: &str = "/sys/kernel/debug/kvm/mmio_exits";
const PORT_EXITS: &str = "/sys/kernel/debug/kvm/io_exits";
const SMAPS: &str = "/proc/{pid}/smaps";

/// Where strace writes, as seen in the host's root.
const STRACE: &str = "/tmp/strace";
/// Where `vmm` writes its counters, as seen there.
const STATS: &str = "/tmp/stats.json";

/// A mapping of so much is the guest's RAM, of which 256 MiB or more are measured.
const RAM_AT_LEAST_KIB: u64 = 128 << 10;

/// A guest to boot.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Its RAM.
    pub memory_mib: u64,
    /// Its CPUs.
    pub cpus: u32,
    /// Its devices, as L1 has them.
    pub devices: Vec<String>,
}

impl Guest {
    /// 512 MiB, one CPU, and these devices.
    pub fn with(devices: &[String]) -> Self {
        Self { memory_mib: 512, cpus: 1, devices: devices.to_vec() }
    }
}

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
    /// What it and its threads made in one boot.
    pub syscalls: Syscalls,
    /// In order.
    pub boots: Vec<Boot>,
    /// Others, with an L1 that clears memory byte by byte.
    pub boots_by_byte: Vec<Boot>,
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
        Self { vmm, syscalls: Syscalls::default(), boots: Vec::new(), boots_by_byte: Vec::new() }
    }

    /// The median over all boots of one of their figures.
    pub fn median(&self, figure: impl Fn(&Boot) -> u64) -> u64 {
        median(&self.boots, figure)
    }

    /// The same where L1 clears memory byte by byte.
    pub fn median_by_byte(&self, figure: impl Fn(&Boot) -> u64) -> u64 {
        median(&self.boots_by_byte, figure)
    }
}

fn median(boots: &[Boot], figure: impl Fn(&Boot) -> u64) -> u64 {
    let mut values: Vec<u64> = boots.iter().map(figure).collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
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
    pub fn boot(self, l1: &mut L1, guest: &Guest, reads: u32) -> Result<Boot, Error> {
        let files = [EXITS, MMIO_EXITS, PORT_EXITS, SMAPS].map(str::to_owned).to_vec();
        // The guest waits after its first word, so what is looked at then stands still.
        let reads = match reads {
            0 => String::new(),
            _ => format!("read:{reads},"),
        };
        let arguments = self.arguments(guest, &format!("pause:300,{reads}end:off"), "");
        let triggers = vec![Trigger { marker: INIT.into(), files, ..Trigger::default() }];
        let run =
            l1.run(Program { arguments, triggers, root: Some(HOST.into()), ..Program::default() })?;
        boot_of(&run).ok_or_else(|| self.failed(&run))
    }

    /// What strace has to say of a boot.
    pub fn trace(self, l1: &mut L1, guest: &Guest) -> Result<String, Error> {
        let strace = ["/usr/bin/strace", "-f", "-o", STRACE].map(str::to_owned);
        let arguments = [strace.as_slice(), &self.arguments(guest, "end:off", "")].concat();
        let run = l1.run(Program { arguments, root: Some(HOST.into()), ..Program::default() })?;
        match run.finished.ending {
            Ending::Status(0) => l1.read(&format!("{HOST}{STRACE}")),
            _ => Err(self.failed(&run)),
        }
    }

    /// What `vmm --stats` counts in a boot.
    pub fn stats(self, l1: &mut L1, guest: &Guest) -> Result<Value, Error> {
        let run = l1.run(Program {
            arguments: self.arguments(guest, "end:off", &format!("--stats {STATS}")),
            root: Some(HOST.into()),
            ..Program::default()
        })?;
        let stats = l1.read(&format!("{HOST}{STATS}"))?;
        serde_json::from_str(&stats).map_err(|_| self.failed(&run))
    }

    /// What boots `guest`, which does `steps`; `more` is for `vmm` only.
    pub fn arguments(self, guest: &Guest, steps: &str, more: &str) -> Vec<String> {
        let (memory, cpus) = (guest.memory_mib, guest.cpus);
        let each = |prefix: &str| -> String {
            let devices = guest.devices.iter();
            devices.map(|device| format!(" {prefix}{device}")).collect()
        };
        let text = match self {
            Self::Qemu => format!(
                "/usr/bin/qemu-system-x86_64 -machine q35,sata=off -accel kvm -cpu host -smp {cpus} -m {memory} -nodefaults \
                 -nographic -no-reboot -serial stdio{} -kernel /tmp/kernel \
                 -initrd /tmp/initrd -append",
                each("-device vfio-pci,host=")
            ),
            Self::Ours => format!(
                "/tmp/vmm {more} --memory {memory}M --cpus {cpus}{} --kernel /tmp/kernel \
                 --initrd /tmp/initrd --cmdline",
                each("--vfio ")
            ),
        };
        let command_line = format!("console=ttyS0 quiet panic=-1 guest.brief guest.do={steps}");
        text.split_whitespace().map(str::to_owned).chain([command_line]).collect()
    }

    fn failed(self, run: &Run) -> Error {
        let why = format!("{:?}\n{}\n{}", run.finished.ending, run.stderr, run.stdout);
        Error::Command { command: format!("{} in L1", self.name()), why }
    }
}

/// None if the guest did not get through.
fn boot_of(run: &Run) -> Option<Boot> {
    let seen = run.finished.sightings.first()?;
    let reports = reports(&run.stdout);
    let Some(Report::End { .. }) = reports.last() else {
        return None;
    };
    let read_ns = reports.iter().find_map(|report| match report {
        Report::Read { median_ns, .. } => Some(*median_ns),
        _ => None,
    });
    Some(Boot {
        to_init_ns: seen.after_ns,
        exits: number(seen, EXITS)?,
        mmio_exits: number(seen, MMIO_EXITS)?,
        port_exits: number(seen, PORT_EXITS)?,
        overhead_kib: overhead_kib(seen.files.get(SMAPS)?),
        read_ns: read_ns.unwrap_or_default(),
    })
}

fn number(seen: &Sighting, file: &str) -> Option<u64> {
    seen.files.get(file)?.trim().parse().ok()
}

/// Proportional resident size of all mappings but the guest's RAM.
fn overhead_kib(smaps: &str) -> u64 {
    let (mut sum, mut is_ram) = (0u64, false);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let value = |mut words: std::str::SplitWhitespace<'_>| {
            words.next().and_then(|n| n.parse::<u64>().ok())
        };
        match words.next() {
            Some("Size:") => is_ram = value(words).is_some_and(|kib| kib >= RAM_AT_LEAST_KIB),
            Some("Pss:") if !is_ram => sum = sum.saturating_add(value(words).unwrap_or_default()),
            _ => {}
        }
    }
    sum
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
            syscalls: Syscalls::default(),
            boots: [9, 1, 5].map(boot).to_vec(),
            boots_by_byte: Vec::new(),
        };
        assert_eq!(figures.median(|boot| boot.to_init_ns), 5);
    }
}
