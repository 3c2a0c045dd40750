//! The cost of an I/O operation in exits, interrupts, instructions and time: with QEMU, with `vmm`,
//! and in L1 without a VMM.
//!
//! Each workload runs three times in one guest: with a few operations, with one more, and with
//! many. The counters are read at the end of each run, so their growth during a run also contains
//! the cost of start, print and measurement. The growth during the third run, less that during the
//! second, is the cost of the additional operations alone.

use std::collections::BTreeMap;

use guest::{Report, reports};
use lab::protocol::{Program, Request, Sighting, Trigger};
use lab::{Device, Error, Kernel, L1, Lab, Machine, say};
use serde::Serialize;

use super::measure::{Guest, Vmm};
use super::plot;
use super::{HOST, booted, keep, vmms, write};

/// KVM's counters of all running VMs (Documentation/virt/kvm: debugfs), and the kernel's
/// statistics, which have L1's idle time.
const EXITS: &str = "/sys/kernel/debug/kvm/exits";
const MMIO_EXITS: &str = "/sys/kernel/debug/kvm/mmio_exits";
const PORT_EXITS: &str = "/sys/kernel/debug/kvm/io_exits";
const STAT: &str = "/proc/stat";
/// The unit of time in [`STAT`], in nanoseconds (USER_HZ is 100 on x86).
const TICK_NS: f64 = 1e7;

/// Operations of the first run. The second has one more, so that its report differs.
const FEW: u64 = 100;
/// Operations of the third run beyond those of the second. It is a large number, because the idle
/// time has a resolution of 10 ms.
const MANY: u64 = 20_000;

/// The devices of the machine: [`Work::device`] is an index into this list.
const DEVICES: [Device; 2] = [Device::Nvme, Device::E1000e];

/// The workloads, each with the number of CPUs. The NVMe has a queue for each CPU.
const WORKS: [(Work, u32); 5] = [
    (Work::Reads(1), 1),
    (Work::Reads(32), 1),
    (Work::Requests, 1),
    (Work::Reads(1), 2),
    (Work::Reads(32), 2),
];

/// The machine that runs the driver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
enum Host {
    /// A guest of this VMM.
    Guest(Vmm),
    /// L1 itself, without a VMM.
    Nobody,
}

impl Host {
    fn name(&self) -> &str {
        match self {
            Self::Guest(vmm) => vmm.name(),
            Self::Nobody => "L1, no VMM",
        }
    }
}

/// A workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum Work {
    /// Reads of 4 KiB, with this queue depth.
    Reads(u64),
    /// ARP requests to the router, one at a time.
    Requests,
}

impl Work {
    fn device(self) -> usize {
        match self {
            Self::Reads(_) => 0,
            Self::Requests => 1,
        }
    }

    fn driver(self) -> &'static str {
        match self {
            Self::Reads(_) => "nvme",
            Self::Requests => "e1000e",
        }
    }

    fn step(self, count: u64) -> String {
        match self {
            Self::Reads(depth) => format!("read:{count}x{depth}"),
            Self::Requests => format!("net:{count}"),
        }
    }

    /// A text that only the guest's report of this step has.
    fn marker(self, count: u64) -> String {
        match self {
            Self::Reads(depth) => format!("\"depth\":{depth},\"reads\":{count},"),
            Self::Requests => format!("\"asked\":{count},"),
        }
    }

    fn name(self, cpus: u32) -> String {
        match self {
            Self::Reads(depth) => {
                format!("NVMe, QD{depth}, {cpus} queue{}", if cpus == 1 { "" } else { "s" })
            }
            Self::Requests => "NIC".to_owned(),
        }
    }
}

/// The counters at the end of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Counts {
    exits: f64,
    userspace_exits: f64,
    interrupts: f64,
    ns: f64,
    idle_ns: f64,
}

/// The cost of one operation.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Cost {
    what: String,
    host: Host,
    /// Exits of any kind.
    exits: f64,
    /// Exits to userspace.
    userspace_exits: f64,
    /// Interrupts of the device that its driver handled.
    interrupts: f64,
    /// Instructions of L1, with those of the guest and of the VMM, and without the idle loop.
    instructions: f64,
    /// Microseconds of L1's time.
    us: f64,
}

/// Measures all workloads, and writes a table and plots of what could be measured.
pub fn run(lab: &Lab) -> Result<(), Error> {
    let machine = Machine::new(Kernel::Small).devices(&DEVICES).with_host_share();
    let mut l1 = booted(lab, &machine)?;
    l1.perform(&Request::Copy { from: place(lab)?, to: format!("{HOST}/tmp/guest") })?;
    let mut costs = Vec::new();
    let hosts: Vec<Host> = vmms(lab)?.into_iter().map(Host::Guest).chain([Host::Nobody]).collect();
    let measured = measure(&mut l1, &hosts, &mut costs);
    let text = table(&costs);
    println!("{text}");
    for (name, title, value) in PLOTS {
        let bar = |cost: &Cost| (format!("{}: {}", cost.what, cost.host.name()), value(cost));
        let bars: Vec<_> = costs.iter().map(bar).collect();
        write(name, &plot::bars(title, &bars)?)?;
    }
    keep("io", &text, &costs)?;
    measured
}

/// Measures all workloads. Adds each cost to `costs` at once, so that none is lost if a machine
/// stalls.
fn measure(l1: &mut L1, hosts: &[Host], costs: &mut Vec<Cost>) -> Result<(), Error> {
    for (work, cpus) in WORKS {
        // L1 has one CPU, and so the NVMe has one queue there.
        for host in hosts.iter().filter(|host| **host != Host::Nobody || cpus == 1) {
            say(&format!("{}: {}", work.name(cpus), host.name()));
            costs.push(cost(l1, work, cpus, host)?);
        }
    }
    Ok(())
}

/// A plot: the name of its file, its title, and the value of a bar.
type Plot = (&'static str, &'static str, fn(&Cost) -> f64);

const PLOTS: [Plot; 2] = [
    ("io-exits.svg", "exits of an operation", |cost| cost.exits),
    ("io-instructions.svg", "instructions of an operation", |cost| cost.instructions),
];

/// The path of the guest's program in L1, where the host's root is mounted.
fn place(lab: &Lab) -> Result<String, Error> {
    Ok(format!("{HOST}{}", lab.guest_program()?.display()))
}

fn cost(l1: &mut L1, work: Work, cpus: u32, host: &Host) -> Result<Cost, Error> {
    let device = l1.machine().address(work.device());
    let more = FEW.saturating_add(1);
    let steps = [FEW, more, more.saturating_add(MANY)];
    let words: Vec<String> =
        steps.iter().map(|count| format!("pause:100,{}", work.step(*count))).collect();
    let steps_text = words.join(",");
    let arguments = match host {
        Host::Guest(vmm) => {
            l1.bind(&device, Some("vfio-pci"))?;
            let guest = Guest { cpus, ..Guest::with(&[device]) };
            vmm.arguments(&guest, &format!("{steps_text},end:off"), "")
        }
        Host::Nobody => {
            l1.bind(&device, Some(work.driver()))?;
            vec!["/tmp/guest".to_owned(), steps_text]
        }
    };
    let trigger = |count: &u64| Trigger {
        marker: work.marker(*count),
        files: [EXITS, MMIO_EXITS, PORT_EXITS, STAT].map(str::to_owned).to_vec(),
        ..Trigger::default()
    };
    let run = l1.run(Program {
        arguments,
        triggers: steps.iter().map(trigger).collect(),
        root: Some(HOST.into()),
        ..Program::default()
    })?;
    let interrupts =
        reports(&run.stdout).into_iter().filter_map(|report| interrupts_of(work, report));
    let seen = run.finished.sightings.iter().zip(interrupts);
    let counts: Vec<Counts> = seen.map(|(seen, interrupts)| counts(seen, interrupts)).collect();
    let [first, second, third] = *counts.as_slice() else {
        let why = format!("{:?}\n{}\n{}", run.finished.ending, run.stderr, run.stdout);
        let command = format!("{} in L1", host.name());
        return Err(Error::Command { command, why });
    };
    Ok(Cost::new(work.name(cpus), host.clone(), MANY, &[first, second, third]))
}

fn counts(seen: &Sighting, interrupts: u64) -> Counts {
    let text = |file: &str| seen.files.get(file).map_or("", String::as_str);
    let number = |file: &str| text(file).trim().parse().unwrap_or(0.0);
    // proc(5): name, user, nice, system, idle, iowait. Both of the last are idle time.
    let idle = text(STAT).split_whitespace().skip(4).take(2);
    let idle: f64 = idle.filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
    Counts {
        exits: number(EXITS),
        userspace_exits: number(MMIO_EXITS) + number(PORT_EXITS),
        interrupts: interrupts as f64,
        ns: seen.after_ns as f64,
        idle_ns: idle * TICK_NS,
    }
}

/// The number of the device's interrupts in a report of `work`.
fn interrupts_of(work: Work, report: Report) -> Option<u64> {
    let of = |interrupts: BTreeMap<String, u64>, name: &str| {
        let own = interrupts.into_iter().filter(|(own, _)| own.starts_with(name));
        own.fold(0, |sum: u64, (_, count)| sum.saturating_add(count))
    };
    match (work, report) {
        (Work::Reads(_), Report::Read { interrupts, .. }) => Some(of(interrupts, "nvme")),
        (Work::Requests, Report::Net { interface, interrupts, .. }) => {
            Some(of(interrupts, &interface))
        }
        _ => None,
    }
}

impl Cost {
    /// The cost from the counters at the end of each of the three runs. The interrupts are those of
    /// each run alone.
    fn new(
        what: String,
        host: Host,
        operations: u64,
        [first, second, third]: &[Counts; 3],
    ) -> Self {
        let operations = operations as f64;
        let of_one = |of: fn(&Counts) -> f64| {
            let [few, many] = [of(second) - of(first), of(third) - of(second)];
            (many - few) / operations
        };
        let ns = of_one(|counts| counts.ns);
        Self {
            what,
            host,
            exits: of_one(|counts| counts.exits),
            userspace_exits: of_one(|counts| counts.userspace_exits),
            interrupts: (third.interrupts - second.interrupts) / operations,
            instructions: ns - of_one(|counts| counts.idle_ns),
            us: ns / 1e3,
        }
    }

    /// Exits for each interrupt; 0 without interrupts.
    fn by_interrupt(&self, exits: f64) -> f64 {
        if self.interrupts > 0.0 { exits / self.interrupts } else { 0.0 }
    }
}

fn table(costs: &[Cost]) -> String {
    let mut text = format!(
        "The cost of one operation (a 4 KiB read; an ARP request and its answer), averaged over \
         {MANY} operations, in an L1 with one CPU. Instructions are all that L1 ran, with those of \
         the guest. The idle time of L1 has a resolution of 10 ms.\n\n\
         | | VMM | exits | to userspace | interrupts | exits for an interrupt | to userspace | instructions | us |\n\
         |---|---|---|---|---|---|---|---|---|\n"
    );
    for cost in costs {
        text.push_str(&format!(
            "| {} | {} | {:.2} | {:.3} | {:.2} | {:.2} | {:.3} | {:.0} | {:.2} |\n",
            cost.what,
            cost.host.name(),
            cost.exits,
            cost.userspace_exits,
            cost.interrupts,
            cost.by_interrupt(cost.exits),
            cost.by_interrupt(cost.userspace_exits),
            cost.instructions,
            cost.us,
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cost_of_an_operation_excludes_the_cost_of_a_run() {
        let at = |operations: f64, steps: f64| Counts {
            exits: 2.0 * operations + 500.0 * steps,
            userspace_exits: 400.0 * steps,
            interrupts: 0.0,
            ns: 10_000.0 * operations + 1e6 * steps,
            idle_ns: 4_000.0 * operations + 5e5 * steps,
        };
        let (few, many) = (FEW as f64, 1000.0);
        let with = |counts: Counts, interrupts: f64| Counts { interrupts, ..counts };
        let counts = [
            with(at(few, 1.0), few),
            with(at(2.0 * few + 1.0, 2.0), few + 1.0),
            with(at(3.0 * few + 2.0 + many, 3.0), few + 1.0 + many),
        ];
        let cost = Cost::new(String::new(), Host::Nobody, 1000, &counts);
        let found = [cost.exits, cost.userspace_exits, cost.interrupts, cost.instructions, cost.us];
        let expected = [2.0, 0.0, 1.0, 6000.0, 10.0];
        let is_close = |(found, expected): (f64, f64)| (found - expected).abs() < 1e-6;
        assert!(found.into_iter().zip(expected).all(is_close), "{found:?}");
    }
}
