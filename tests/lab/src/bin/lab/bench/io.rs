//! The cost of an I/O operation in exits, interrupts, instructions and time: with QEMU, with `vmm`,
//! and in L1 without a VMM.
//!
//! The number of operations that one interrupt answers depends on when the emulated device answers,
//! which is not on L1's clock. It differs between rounds, with each VMM, so the VMMs take turns.
//!
//! Each workload runs three times in one guest: with a few operations, with one more, and with
//! many. The counters are read at the end of each run, so their growth during a run also contains
//! the cost of start, print and measurement. The growth during the third run, less that during the
//! second, is the cost of the additional operations alone.

use std::collections::BTreeMap;

use guest::{Report, reports};
use lab::protocol::{Program, Request, Sighting, Trigger};
use lab::{Device, Error, Kernel, L1, Lab, Machine, place, say};
use serde::Serialize;

use super::cost::{self, Cost, Counts, REASONS};
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
pub enum Host {
    /// A guest of this VMM.
    Guest(Vmm),
    /// L1 itself, without a VMM.
    Nobody,
}

impl Host {
    /// Its name for tables.
    pub fn name(&self) -> &str {
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

/// Measures all workloads, and writes a table and plots of what could be measured.
pub fn run(lab: &Lab, rounds: u32, operations: u64) -> Result<(), Error> {
    let machine = Machine::new(Kernel::Small).devices(&DEVICES).with_host_share();
    let mut l1 = booted(lab, &machine)?;
    l1.perform(&Request::Copy { from: place::GUEST.into(), to: format!("{HOST}/tmp/guest") })?;
    let mut costs = Vec::new();
    let hosts: Vec<Host> = vmms(lab)?.into_iter().map(Host::Guest).chain([Host::Nobody]).collect();
    let measured = (0..rounds).try_for_each(|round| {
        say(&format!("round {} of {rounds}", round.saturating_add(1)));
        measure(&mut l1, &hosts, operations, &mut costs)
    });
    let text = format!(
        "The cost of one operation (a 4 KiB read; an ARP request and its answer), averaged over \
         {operations} operations, in an L1 with one CPU: the median of {rounds} rounds, and the range. \
         Instructions are all that L1 ran, with those of the guest. The idle time of L1 has a \
         resolution of 10 ms.\n\n{}\nThe exits of one operation by reason:\n\n{}",
        cost::table(&costs),
        cost::reasons(&costs)
    );
    println!("{text}");
    for (name, title, value) in PLOTS {
        write(name, &plot::bars(title, &cost::medians(&costs, value))?)?;
    }
    keep("io", &text, &costs)?;
    measured
}

/// Measures all workloads once. Adds each cost to `costs` at once, so that none is lost if a machine
/// stalls.
fn measure(
    l1: &mut L1,
    hosts: &[Host],
    operations: u64,
    costs: &mut Vec<Cost>,
) -> Result<(), Error> {
    for (work, cpus) in WORKS {
        // L1 has one CPU, and so the NVMe has one queue there.
        for host in hosts.iter().filter(|host| **host != Host::Nobody || cpus == 1) {
            say(&format!("{}: {}", work.name(cpus), host.name()));
            costs.push(cost(l1, (work, cpus), operations, host)?);
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

fn cost(
    l1: &mut L1,
    (work, cpus): (Work, u32),
    operations: u64,
    host: &Host,
) -> Result<Cost, Error> {
    let device = l1.machine().address(work.device());
    let more = FEW.saturating_add(1);
    let steps = [FEW, more, more.saturating_add(operations)];
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
    let trigger =
        |count: &u64| Trigger { marker: work.marker(*count), files: files(), ..Trigger::default() };
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
    Ok(Cost::new(work.name(cpus), host.clone(), operations, &[first, second, third]))
}

/// The files with the counters.
fn files() -> Vec<String> {
    let reasons = REASONS.iter().map(|(_, file)| *file);
    let files = [EXITS, MMIO_EXITS, PORT_EXITS, STAT].into_iter().chain(reasons);
    files.map(str::to_owned).collect()
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
        reasons: REASONS.map(|(_, file)| number(file)),
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
