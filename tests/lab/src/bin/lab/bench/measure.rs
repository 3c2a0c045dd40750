//! The measurement of one boot.

use guest::{Report, reports};
use lab::protocol::{Ending, Program, Sighting, Trigger};
use lab::{Error, L1, Run};
use serde::Serialize;
use serde_json::Value;

use super::HOST;
use super::qemu::Qemu;
use super::syscalls::Syscalls;

/// The first report of the guest's init.
const INIT: &str = "\"report\":\"up\"";
/// Its last report, after which it powers off.
const END: &str = "\"report\":\"end\"";

/// KVM's counters of all running VMs (Documentation/virt/kvm: debugfs). Of MMIO exits to userspace,
/// x86 has the first one and arm64 the second one; arm64 has no port exits.
const EXITS: &str = "/sys/kernel/debug/kvm/exits";
const MMIO_EXITS: [&str; 2] =
    ["/sys/kernel/debug/kvm/mmio_exits", "/sys/kernel/debug/kvm/mmio_exit_user"];
const PORT_EXITS: &str = "/sys/kernel/debug/kvm/io_exits";
const SMAPS: &str = "/proc/{pid}/smaps";

/// The file that strace writes, within the host's root.
const STRACE: &str = "/tmp/strace";
/// The file to which `vmm` writes its counters, within the host's root.
const STATS: &str = "/tmp/stats.json";

/// A mapping of at least this size is the guest's RAM. Guests have 256 MiB or more.
const RAM_AT_LEAST_KIB: u64 = 128 << 10;

/// The description of a guest.
#[derive(Clone, Debug)]
pub struct Guest {
    /// The RAM in MiB.
    pub memory_mib: u64,
    /// The number of CPUs.
    pub cpus: u32,
    /// The addresses of the assigned devices in L1.
    pub devices: Vec<String>,
}

impl Guest {
    /// A guest with 512 MiB, one CPU, and these devices.
    pub fn with(devices: &[String]) -> Self {
        Self { memory_mib: 512, cpus: 1, devices: devices.to_vec() }
    }
}

/// A VMM that boots the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Vmm {
    /// A QEMU.
    Qemu(Qemu),
    /// This project's `vmm`.
    Ours,
}

/// The measurements of one VMM.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// The VMM.
    pub vmm: Vmm,
    /// The system calls of one boot, of all threads.
    pub syscalls: Syscalls,
    /// The boots, in order.
    pub boots: Vec<Boot>,
    /// The boots in an L1 with ERMS, which clears memory byte by byte.
    pub boots_by_byte: Vec<Boot>,
}

/// The measurements of one boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Boot {
    /// The time from exec to the first report of the guest's init.
    pub to_init_ns: u64,
    /// Exits of any kind up to then.
    pub exits: u64,
    /// MMIO exits to userspace up to then.
    pub mmio_exits: u64,
    /// Port exits up to then.
    pub port_exits: u64,
    /// The proportional resident memory of the process without the guest's RAM.
    pub overhead_kib: u64,
    /// The median time of a 4 KiB read, at queue depth 1.
    pub read_ns: u64,
    /// The time from exec to exit of a guest that waits for its disk and powers off.
    pub life_ns: u64,
    /// The time from the last report of that guest to the exit.
    pub end_ns: u64,
}

impl Figures {
    /// Figures without a measurement.
    pub fn new(vmm: Vmm) -> Self {
        Self { vmm, syscalls: Syscalls::default(), boots: Vec::new(), boots_by_byte: Vec::new() }
    }

    /// The median of a figure over all boots.
    pub fn median(&self, figure: impl Fn(&Boot) -> u64) -> u64 {
        median(&self.boots, figure)
    }

    /// The least value of a figure over all boots; 0 without boots.
    pub fn least(&self, figure: impl Fn(&Boot) -> u64) -> u64 {
        self.boots.iter().map(figure).min().unwrap_or_default()
    }

    /// The median of a figure over all boots in an L1 with ERMS.
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
    /// The VMM's name for tables.
    pub fn name(&self) -> &str {
        match self {
            Self::Qemu(qemu) => &qemu.name,
            Self::Ours => "vmm",
        }
    }

    /// Boots the guest twice and measures; the guest of the first boot makes `reads` reads.
    pub fn boot(&self, l1: &mut L1, guest: &Guest, reads: u32) -> Result<Boot, Error> {
        let boot = self.start(l1, guest, reads, "")?;
        let (life_ns, end_ns) = self.life(l1, guest)?;
        Ok(Boot { life_ns, end_ns, ..boot })
    }

    /// Boots a guest that waits for its disks and powers off; returns the time from exec to exit,
    /// and from the guest's last report to exit.
    fn life(&self, l1: &mut L1, guest: &Guest) -> Result<(u64, u64), Error> {
        let steps = format!("disks:{},end:off", guest.devices.len());
        let triggers = vec![Trigger { marker: END.into(), ..Trigger::default() }];
        let run = l1.run(Program {
            arguments: self.arguments(guest, &steps, ""),
            triggers,
            root: Some(HOST.into()),
            ..Program::default()
        })?;
        let life_ns = run.finished.elapsed_ns;
        let seen = run.finished.sightings.first().filter(|_| has_ended(&run));
        let end_ns = seen.map(|seen| life_ns.saturating_sub(seen.after_ns));
        Ok((life_ns, end_ns.ok_or_else(|| self.failed(&run))?))
    }

    /// Boots the guest up to its init and measures; the guest makes `reads` reads. `more` are
    /// arguments for `vmm` only.
    pub fn start(&self, l1: &mut L1, guest: &Guest, reads: u32, more: &str) -> Result<Boot, Error> {
        let [mmio, mmio_of_arm64] = MMIO_EXITS;
        let files = [EXITS, mmio, mmio_of_arm64, PORT_EXITS, SMAPS].map(str::to_owned).to_vec();
        // The guest pauses after its first report, so that the counters do not change while the
        // agent reads them.
        let reads = match reads {
            0 => String::new(),
            _ => format!("read:{reads},"),
        };
        let arguments = self.arguments(guest, &format!("pause:300,{reads}end:off"), more);
        let triggers = vec![Trigger { marker: INIT.into(), files, ..Trigger::default() }];
        let run =
            l1.run(Program { arguments, triggers, root: Some(HOST.into()), ..Program::default() })?;
        boot_of(&run).ok_or_else(|| self.failed(&run))
    }

    /// Boots the guest under strace; returns strace's output.
    pub fn trace(&self, l1: &mut L1, guest: &Guest) -> Result<String, Error> {
        let strace = ["/usr/bin/strace", "-f", "-o", STRACE].map(str::to_owned);
        let arguments = [strace.as_slice(), &self.arguments(guest, "end:off", "")].concat();
        let run = l1.run(Program { arguments, root: Some(HOST.into()), ..Program::default() })?;
        match run.finished.ending {
            Ending::Status(0) => l1.read(&format!("{HOST}{STRACE}")),
            _ => Err(self.failed(&run)),
        }
    }

    /// Boots the guest with `vmm --stats`; returns the counters.
    pub fn stats(&self, l1: &mut L1, guest: &Guest) -> Result<Value, Error> {
        let run = l1.run(Program {
            arguments: self.arguments(guest, "end:off", &format!("--stats {STATS}")),
            root: Some(HOST.into()),
            ..Program::default()
        })?;
        let stats = l1.read(&format!("{HOST}{STATS}"))?;
        serde_json::from_str(&stats).map_err(|_| self.failed(&run))
    }

    /// The command line that boots `guest` with these steps. `more` are arguments for `vmm` only.
    pub fn arguments(&self, guest: &Guest, steps: &str, more: &str) -> Vec<String> {
        let (memory, cpus) = (guest.memory_mib, guest.cpus);
        let each = |prefix: &str| -> String {
            let devices = guest.devices.iter();
            devices.map(|device| format!(" {prefix}{device}")).collect()
        };
        let text = match self {
            Self::Qemu(Qemu { command, .. }) => format!(
                "{command} -smp {cpus} -m {memory} -nodefaults -nographic -no-reboot \
                 -serial stdio{} -kernel /tmp/kernel -initrd /tmp/initrd -append",
                each("-device vfio-pci,host=")
            ),
            Self::Ours => format!(
                "/tmp/vmm {more} --memory {memory}M --cpus {cpus}{} --kernel /tmp/kernel \
                 --initrd /tmp/initrd --cmdline",
                each("--vfio ")
            ),
        };
        let console = match self {
            Self::Qemu(qemu) => qemu.console,
            Self::Ours => "ttyS0",
        };
        let command_line = format!("console={console} quiet panic=-1 guest.brief guest.do={steps}");
        text.split_whitespace().map(str::to_owned).chain([command_line]).collect()
    }

    fn failed(&self, run: &Run) -> Error {
        let why = format!("{:?}\n{}\n{}", run.finished.ending, run.stderr, run.stdout);
        Error::Command { command: format!("{} in L1", self.name()), why }
    }
}

/// The measurements of a run; `None` if the guest did not report its end.
fn boot_of(run: &Run) -> Option<Boot> {
    let seen = run.finished.sightings.first().filter(|_| has_ended(run))?;
    let reports = reports(&run.stdout);
    let read_ns = reports.iter().find_map(|report| match report {
        Report::Read { median_ns, .. } => Some(*median_ns),
        _ => None,
    });
    Some(Boot {
        to_init_ns: seen.after_ns,
        exits: number(seen, EXITS)?,
        mmio_exits: MMIO_EXITS.iter().find_map(|file| number(seen, file))?,
        port_exits: number(seen, PORT_EXITS).unwrap_or_default(),
        overhead_kib: overhead_kib(seen.files.get(SMAPS)?),
        read_ns: read_ns.unwrap_or_default(),
        ..Boot::default()
    })
}

/// Whether the guest's last report is its end.
fn has_ended(run: &Run) -> bool {
    matches!(reports(&run.stdout).last(), Some(Report::End { .. }))
}

fn number(seen: &Sighting, file: &str) -> Option<u64> {
    seen.files.get(file)?.trim().parse().ok()
}

/// The sum of the proportional resident sizes of all mappings without the guest's RAM.
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
    fn overhead_excludes_the_guests_ram() {
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
    fn median_is_the_middle_value() {
        let boot = |to_init_ns| Boot { to_init_ns, ..Boot::default() };
        let figures = Figures {
            vmm: Vmm::Ours,
            syscalls: Syscalls::default(),
            boots: [9, 1, 5].map(boot).to_vec(),
            boots_by_byte: Vec::new(),
        };
        assert_eq!(figures.median(|boot| boot.to_init_ns), 5);
    }
}
