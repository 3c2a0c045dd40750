//! What an I/O costs: exits, interrupts and time, with QEMU, with `vmm`, and in L1 without a VMM.
//!
//! Each step is done twice, with some operations and with many; what the second one costs beyond the first is the
//! cost of the operations, without that of starting, printing and looking.

use guest::{Report, reports};
use lab::protocol::{Program, Request, Sighting, Trigger};
use lab::{Device, Error, Kernel, L1, Lab, Machine, say};
use serde::Serialize;

use super::measure::{Guest, Vmm};
use super::{HOST, booted, keep};

/// Counters of all VMs that live (Documentation/virt/kvm: debugfs), and how often interrupts were injected.
const COUNTERS: [&str; 4] = [
    "/sys/kernel/debug/kvm/exits",
    "/sys/kernel/debug/kvm/mmio_exits",
    "/sys/kernel/debug/kvm/io_exits",
    "/sys/kernel/debug/kvm/irq_injections",
];
/// Operations of the first of two steps.
const FEW: u64 = 100;
/// NVMe is number 0, the NIC number 1.
const DEVICES: [Device; 2] = [Device::Nvme, Device::E1000e];

/// Who runs the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Host {
    /// A guest of this VMM.
    Guest(Vmm),
    /// L1 itself.
    Nobody,
}

impl Host {
    fn name(self) -> &'static str {
        match self {
            Self::Guest(vmm) => vmm.name(),
            Self::Nobody => "L1, no VMM",
        }
    }
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum Work {
    /// Reads of 4 KiB, so many at a time.
    Reads(u64),
    /// Requests to the router, one at a time.
    Requests,
}

impl Work {
    fn device(self) -> usize {
        match self {
            Self::Reads(_) => 0,
            Self::Requests => 1,
        }
    }

    fn step(self, count: u64) -> String {
        match self {
            Self::Reads(depth) => format!("read:{count}x{depth}"),
            Self::Requests => format!("net:{count}"),
        }
    }

    /// What the guest prints at the end of a step.
    fn marker(self, count: u64) -> String {
        match self {
            Self::Reads(depth) => format!("\"depth\":{depth},\"reads\":{count},"),
            Self::Requests => format!("\"asked\":{count},"),
        }
    }

    fn name(self, cpus: u32) -> String {
        match self {
            Self::Reads(depth) => format!("NVMe, QD{depth}, {cpus} queues"),
            Self::Requests => format!("NIC, {cpus} vCPUs"),
        }
    }
}

/// The cost of an operation, in thousandths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cost {
    what: String,
    host: Host,
    /// Out of the guest, of any kind.
    exits: u64,
    /// Of these to userspace.
    userspace_exits: u64,
    /// Interrupts of the device that the driver had.
    interrupts: u64,
    /// Interrupts that KVM injected.
    injections: u64,
    /// In L1's time.
    ns: u64,
}

/// Measures all of it.
pub fn measure(lab: &Lab, count: u64) -> Result<Vec<Cost>, Error> {
    let machine = Machine::new(Kernel::Small).devices(&DEVICES).with_host_share();
    let mut l1 = booted(lab, &machine)?;
    l1.tell(&Request::Copy {
        from: lab.guest_program()?.display().to_string(),
        to: format!("{HOST}/tmp/guest"),
    })?;
    let mut costs = Vec::new();
    for (work, cpus) in [
        (Work::Reads(1), 1),
        (Work::Reads(32), 1),
        (Work::Reads(1), 2),
        (Work::Reads(32), 2),
        (Work::Requests, 1),
    ] {
        for host in [Host::Guest(Vmm::Qemu), Host::Guest(Vmm::Ours), Host::Nobody] {
            // L1 has one CPU, and so one queue.
            if host != Host::Nobody || cpus == 1 {
                say(&format!("{}: {}", work.name(cpus), host.name()));
                costs.push(cost(&mut l1, work, cpus, host, count)?);
            }
        }
    }
    Ok(costs)
}

fn cost(l1: &mut L1, work: Work, cpus: u32, host: Host, count: u64) -> Result<Cost, Error> {
    let device = l1.machine().address(work.device());
    let many = FEW.saturating_add(count);
    let steps = format!("pause:300,{},pause:100,{}", work.step(FEW), work.step(many));
    let arguments = match host {
        Host::Guest(vmm) => {
            l1.bind(&device, Some("vfio-pci"))?;
            let guest = Guest {
                cpus,
                ..Guest::with(&[device])
            };
            vmm.arguments(&guest, &format!("{steps},end:off"), "")
        }
        Host::Nobody => {
            let driver = if work.device() == 0 { "nvme" } else { "e1000e" };
            l1.bind(&device, Some(driver))?;
            vec!["/tmp/guest".to_owned(), steps]
        }
    };
    let trigger = |count| Trigger {
        marker: work.marker(count),
        files: COUNTERS.map(str::to_owned).to_vec(),
        ..Trigger::default()
    };
    let run = l1.run(Program {
        arguments,
        triggers: vec![trigger(FEW), trigger(many)],
        root: Some(HOST.into()),
        ..Program::default()
    })?;
    let per_one = |few: u64, many: u64| {
        let more = many.saturating_sub(few).saturating_mul(1000);
        more.checked_div(count).unwrap_or_default()
    };
    let seen = |file: &str| match run.finished.sightings.as_slice() {
        [few, many] => per_one(number(few, file), number(many, file)),
        _ => 0,
    };
    let [few, many] = totals(&run.stdout).ok_or_else(|| Error::Command {
        command: format!("{} in L1", host.name()),
        why: format!("{:?}\n{}\n{}", run.finished.ending, run.stderr, run.stdout),
    })?;
    let [exits, mmio, port, injections] = COUNTERS.map(seen);
    Ok(Cost {
        what: work.name(cpus),
        host,
        exits,
        userspace_exits: mmio.saturating_add(port),
        interrupts: per_one(few.0, many.0),
        injections,
        ns: per_one(few.1, many.1),
    })
}

fn number(seen: &Sighting, file: &str) -> u64 {
    let text = seen.files.get(file).map(|text| text.trim().parse().ok());
    text.flatten().unwrap_or_default()
}

/// Interrupts and nanoseconds of the two steps. Of the NIC's or the disk's own vectors only.
fn totals(stdout: &str) -> Option<[(u64, u64); 2]> {
    let total = |report: Report| {
        let (own, interrupts, ns) = match report {
            Report::Read {
                interrupts, total_ns, ..
            } => ("nvme", interrupts, total_ns),
            Report::Net {
                interface,
                interrupts,
                total_ns,
                ..
            } => return Some((of(&interrupts, &interface), total_ns)),
            _ => return None,
        };
        Some((of(&interrupts, own), ns))
    };
    let mut totals = reports(stdout).into_iter().filter_map(total);
    Some([totals.next()?, totals.next()?])
}

fn of(interrupts: &std::collections::BTreeMap<String, u64>, name: &str) -> u64 {
    let own = interrupts.iter().filter(|(own, _)| own.starts_with(name));
    own.fold(0, |sum, (_, count)| sum.saturating_add(*count))
}

/// As a table, which is kept.
pub fn report(costs: &[Cost]) -> Result<(), Error> {
    let mut text =
        "For each operation (a 4 KiB read; an ARP request and its answer), in an L1 of one CPU:\n\n\
                    | | who | exits | to userspace | interrupts of the driver | injected | us |\n\
                    |---|---|---|---|---|---|---|\n"
            .to_owned();
    for cost in costs {
        let shown = |value: u64| format!("{}.{:02}", value / 1000, value % 1000 / 10);
        text.push_str(&format!(
            "| {} | {} | {} | {} | {} | {} | {} |\n",
            cost.what,
            cost.host.name(),
            shown(cost.exits),
            shown(cost.userspace_exits),
            shown(cost.interrupts),
            shown(cost.injections),
            shown(cost.ns / 1000),
        ));
    }
    println!("{text}");
    keep("io", &text, &costs)
}
