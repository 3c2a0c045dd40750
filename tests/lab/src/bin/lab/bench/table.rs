//! The comparison of the VMMs as a table, and the goals.

use std::fmt::{self, Display, Formatter};

use lab::Kernel;

use super::Arguments;
use super::measure::{Boot, Figures};

/// A goal: it is met if `value` is at most `most`.
pub struct Goal {
    what: &'static str,
    value: u64,
    most: u64,
    unit: &'static str,
}

impl Goal {
    /// The goal that `value` is at most `most`.
    pub fn new(what: &'static str, value: u64, most: u64, unit: &'static str) -> Self {
        Self { what, value, most, unit }
    }

    /// Whether the goal is met.
    pub fn is_met(&self) -> bool {
        self.value <= self.most
    }
}

impl Display for Goal {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let verdict = if self.is_met() { "met" } else { "NOT met" };
        write!(
            f,
            "{verdict:>7}: {} {} {} (at most {})",
            self.what, self.value, self.unit, self.most
        )
    }
}

fn userspace_exits(boot: &Boot) -> u64 {
    boot.mmio_exits.saturating_add(boot.port_exits)
}

/// The goals of the start. `figures` has the host's QEMU first and `vmm` last; a goal relative to
/// QEMU is relative to the host's.
pub fn goals(figures: &[Figures], binary_kib: u64) -> Vec<Goal> {
    let [qemu, .., ours] = figures else {
        return Vec::new();
    };
    let to_init = percent(ours.median(|boot| boot.to_init_ns), qemu.median(|boot| boot.to_init_ns));
    // A read takes longer if the answer finds the guest's CPU halted. How often that happens depends
    // on the host's clock, on which the emulated device answers.
    let read = percent(ours.least(|boot| boot.read_ns), qemu.least(|boot| boot.read_ns));
    let mut goals = vec![
        Goal::new("exec to guest init:", to_init, 35, "% of QEMU's"),
        Goal::new(
            "system calls of a boot, without KVM_RUN:",
            ours.syscalls.without_runs(),
            400,
            "",
        ),
        Goal::new(
            "memory beyond the guest's:",
            ours.median(|boot| boot.overhead_kib),
            3 * 1024,
            "KiB",
        ),
        Goal::new("the program's size:", binary_kib, 3 * 1024, "KiB"),
    ];
    // Two measurements of the same differ by up to one percent.
    let reads = Goal::new("time of a 4 KiB read, in the best round:", read, 101, "% of QEMU's");
    goals.extend((read > 0).then_some(reads));
    goals
}

/// `ours` in percent of `qemu`, rounded up: a value slightly above a goal does not meet it.
fn percent(ours: u64, qemu: u64) -> u64 {
    match qemu {
        0 => u64::MAX,
        _ => ours.saturating_mul(100).div_ceil(qemu),
    }
}

/// A row of the table: its name and its value.
type Row = (&'static str, fn(&Figures) -> String);

/// The row of a second L1, which an arm64 machine does not have.
const BY_BYTE: &str = "the same, in an L1 with ERMS";

const ROWS: [Row; 11] = [
    ("exec to guest init (s, at 1 ns per instruction)", |f| {
        seconds(f.median(|boot| boot.to_init_ns))
    }),
    (BY_BYTE, |f| seconds(f.median_by_byte(|boot| boot.to_init_ns))),
    ("exec to exit, for a guest that waits for its disk (s)", |f| {
        seconds(f.median(|boot| boot.life_ns))
    }),
    ("power-off to exit, in that life (s)", |f| seconds(f.median(|boot| boot.end_ns))),
    ("exits up to init, all", |f| f.median(|boot| boot.exits).to_string()),
    ("exits up to init to userspace", |f| f.median(userspace_exits).to_string()),
    ("of these MMIO / port", |f| {
        let [mmio, port] = [f.median(|boot| boot.mmio_exits), f.median(|boot| boot.port_exits)];
        format!("{mmio} / {port}")
    }),
    ("system calls of a boot", |f| f.syscalls.total.to_string()),
    ("of these without KVM_RUN", |f| f.syscalls.without_runs().to_string()),
    ("memory beyond guest RAM (KiB)", |f| f.median(|boot| boot.overhead_kib).to_string()),
    ("4 KiB read, one at a time (us)", |f| thousandths(f.median(|boot| boot.read_ns))),
];

/// The comparison as a Markdown table, with medians over the rounds.
pub fn table(figures: &[Figures], kernel: Kernel, arguments: &Arguments) -> String {
    let names = row("", figures, |figures| figures.vmm.name().to_owned());
    let mut text = format!(
        "One guest ({}, 512 MiB, one vCPU, one NVMe): medians of {} rounds with {} reads \
         each. L1's time is 1 ns per instruction. Port exits include those that KVM handled \
         itself.\n\n\
         {names}|---|{}\n",
        kernel.name(),
        arguments.rounds,
        arguments.reads,
        "---|".repeat(figures.len())
    );
    let has_second = figures.iter().any(|figures| !figures.boots_by_byte.is_empty());
    for (name, value) in ROWS.into_iter().filter(|(name, _)| has_second || *name != BY_BYTE) {
        text.push_str(&row(name, figures, value));
    }
    text
}

/// A line of a Markdown table, with a cell for each VMM.
pub fn row(name: &str, figures: &[Figures], value: impl Fn(&Figures) -> String) -> String {
    let cells: String = figures.iter().map(|figures| format!(" {} |", value(figures))).collect();
    format!("| {name} |{cells}\n")
}

fn seconds(nanoseconds: u64) -> String {
    thousandths(nanoseconds / 1_000_000)
}

fn thousandths(value: u64) -> String {
    format!("{}.{:03}", value / 1000, value % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::measure::Vmm;
    use crate::bench::qemu::Qemu;
    use crate::bench::syscalls::Syscalls;

    fn qemu() -> Vmm {
        Vmm::Qemu(Qemu { name: "QEMU".into(), command: String::new(), console: "ttyS0" })
    }

    fn figures(vmm: Vmm, to_init_ns: u64, calls: u64) -> Figures {
        let boot =
            Boot { to_init_ns, mmio_exits: 900, port_exits: 200, read_ns: 1000, ..Boot::default() };
        Figures {
            vmm,
            syscalls: Syscalls { total: calls, by_name: Vec::new() },
            boots: vec![boot; 3],
            boots_by_byte: Vec::new(),
        }
    }

    #[test]
    fn goal_is_met_up_to_its_limit() {
        let against = |ours| [figures(qemu(), 2000, 0), figures(qemu(), 1, 0), ours];
        let met = goals(&against(figures(Vmm::Ours, 700, 400)), 3072);
        assert!(met.len() == 5 && met.iter().all(Goal::is_met));
        let missed = goals(&against(figures(Vmm::Ours, 701, 401)), 3073);
        assert_eq!(missed.iter().filter(|goal| !goal.is_met()).count(), 3);
    }

    #[test]
    fn goal_relative_to_qemu_is_not_met_without_a_measurement() {
        let figures = [Figures::new(qemu()), figures(Vmm::Ours, 1000, 0)];
        assert!(!goals(&figures, 0)[0].is_met());
    }

    #[test]
    fn formats_thousandths_with_leading_zeros() {
        assert_eq!(thousandths(1_007), "1.007");
    }
}
