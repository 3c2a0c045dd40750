//! The start with 1 to 16 devices and with 256 MiB to 8 GiB of RAM, and a line fitted to each
//! figure.

use lab::protocol::Request;
use lab::{Device, Error, Kernel, L1, Lab, Machine, VFS, say};
use serde::Serialize;
use serde_json::Value;

use super::measure::{Boot, Guest, Vmm};
use super::plot::{self, number};
use super::syscalls::Syscalls;
use super::table::Goal;
use super::{booted, keep, write};

const DEVICES: [u16; 5] = [1, 2, 4, 8, 16];
const MEMORY_MIB: [u64; 6] = [256, 512, 1024, 2048, 4096, 8192];
/// The RAM that L1 needs beside the guest's.
const OWN_MIB: u64 = 1536;
/// The goal: the most memory beyond the guest's RAM that each further device may add.
const MOST_KIB_EACH: u64 = 256;

/// The measurements of a start.
#[derive(Clone, Copy, Debug, Serialize)]
struct Start {
    devices: u16,
    memory_mib: u64,
    boot: Boot,
    syscalls: u64,
    /// The time from the guest's power-off to the VMM's exit: its devices end and are closed, and
    /// RAM is unmapped.
    end_ns: u64,
}

/// A figure of a start: its name, its unit, and its value.
type Figure = (&'static str, &'static str, fn(&Start) -> f64);

const FIGURES: [Figure; 6] = [
    ("time from exec to init", "ms", |start| start.boot.to_init_ns as f64 / 1e6),
    ("time from exec to exit", "ms", |start| start.boot.life_ns as f64 / 1e6),
    ("time from power-off to exit", "ms", |start| start.end_ns as f64 / 1e6),
    ("exits to userspace up to init", "", |start| {
        start.boot.mmio_exits.saturating_add(start.boot.port_exits) as f64
    }),
    ("system calls of a boot", "", |start| start.syscalls as f64),
    (OVERHEAD, "KiB", overhead),
];

/// The figure that has a goal.
const OVERHEAD: &str = "memory beyond the guest's";

fn overhead(start: &Start) -> f64 {
    start.boot.overhead_kib as f64
}

/// Measures guests of up to `most_mib` of RAM, and writes tables and plots; returns whether the
/// goal is met.
pub fn run(lab: &Lab, most_mib: u64) -> Result<bool, Error> {
    let sizes: Vec<u64> = MEMORY_MIB.into_iter().filter(|size| *size <= most_mib).collect();
    let largest = sizes.last().copied().unwrap_or_default().saturating_add(OWN_MIB);
    let machine = Machine::new(Kernel::Small)
        .devices(&[Device::NvmeWithVfs])
        .memory_mib(u32::try_from(largest).unwrap_or(u32::MAX))
        .with_host_share();
    let mut l1 = booted(lab, &machine)?;
    let functions = virtual_functions(&mut l1)?;
    let by_devices = by_devices(&mut l1, &functions)?;
    let by_memory: Vec<Start> = sizes
        .iter()
        .map(|size| start(&mut l1, functions.get(..1).unwrap_or_default(), *size))
        .collect::<Result<_, _>>()?;
    drop(l1);
    let on_root = on_root(lab)?;
    let on_root_text = table("NVMes", &on_root, |start| f64::from(start.devices))?;
    let by_devices_text = table("devices", &by_devices, |start| f64::from(start.devices))?;
    let by_memory_text = table("GiB of RAM", &by_memory, |start| start.memory_mib as f64 / 1024.0)?;
    let text = format!(
        "Starts by devices (virtual functions of an NVMe behind a port, 512 MiB of RAM):\n\n\
         {by_devices_text}\n\
         Starts by devices (NVMes on the root bus, 512 MiB of RAM):\n\n{on_root_text}\n\
         Starts by RAM (one device):\n\n{by_memory_text}"
    );
    let points: Vec<_> =
        by_devices.iter().map(|start| (f64::from(start.devices), overhead(start))).collect();
    let goal = Goal::new(
        "memory for each further device:",
        plot::line(&points).slope.max(0.0).round() as u64,
        MOST_KIB_EACH,
        "KiB",
    );
    println!("{text}\n{goal}");
    keep("scale", &text, &(by_devices, on_root, by_memory))?;
    Ok(goal.is_met())
}

/// Starts with growing numbers of devices.
fn by_devices(l1: &mut L1, devices: &[String]) -> Result<Vec<Start>, Error> {
    let counts = DEVICES.iter().map(|count| usize::from(*count));
    counts.map(|count| start(l1, devices.get(..count).unwrap_or_default(), 512)).collect()
}

/// Starts with devices that share no bridge, so that the kernel can reset all at their close.
fn on_root(lab: &Lab) -> Result<Vec<Start>, Error> {
    let nvmes = [Device::Nvme; 16];
    let machine = Machine::new(Kernel::Small).devices(&nvmes).memory_mib(3072).with_host_share();
    let mut l1 = booted(lab, &machine)?;
    let devices: Vec<String> = (0..nvmes.len()).map(|index| machine.address(index)).collect();
    devices.iter().try_for_each(|device| l1.bind(device, Some("vfio-pci")))?;
    by_devices(&mut l1, &devices)
}

/// Makes the virtual functions of the first NVMe with its driver, and binds them to vfio-pci.
fn virtual_functions(l1: &mut L1) -> Result<Vec<String>, Error> {
    let address = l1.machine().address(0);
    l1.bind(&address, Some("nvme"))?;
    l1.perform(&Request::VirtualFunctions { address, count: VFS })?;
    (1..=VFS)
        .map(|number| {
            let function = l1.machine().vf(number);
            l1.bind(&function, Some("vfio-pci")).map(|()| function)
        })
        .collect()
}

fn start(l1: &mut L1, devices: &[String], memory_mib: u64) -> Result<Start, Error> {
    say(&format!("{} devices, {memory_mib} MiB", devices.len()));
    let guest = Guest { memory_mib, ..Guest::with(devices) };
    Ok(Start {
        devices: u16::try_from(devices.len()).unwrap_or(u16::MAX),
        memory_mib,
        boot: Vmm::Ours.boot(l1, &guest, 0)?,
        syscalls: Syscalls::of(&Vmm::Ours.trace(l1, &guest)?).total,
        end_ns: end(&Vmm::Ours.stats(l1, &guest)?),
    })
}

/// The duration of the end, of the VMM's counters.
fn end(stats: &Value) -> u64 {
    let phases = ["/phases_ns/end", "/phases_ns/close"].map(|path| stats.pointer(path));
    phases.into_iter().flatten().filter_map(Value::as_u64).fold(0, u64::saturating_add)
}

/// A table of all figures by `x`, with the fitted lines. Writes a plot of each figure.
fn table(x_name: &str, starts: &[Start], x: fn(&Start) -> f64) -> Result<String, Error> {
    let xs: Vec<String> = starts.iter().map(|start| number(x(start))).collect();
    let mut text = format!(
        "| {x_name} | {} | line | fit |\n|---{}|---|---|\n",
        xs.join(" | "),
        "|---".repeat(starts.len())
    );
    for (name, unit, value) in FIGURES {
        let points: Vec<(f64, f64)> = starts.iter().map(|start| (x(start), value(start))).collect();
        let line = plot::line(&points);
        let values: Vec<String> = points.iter().map(|(_, y)| number(*y)).collect();
        let title = format!("{name} {unit}");
        text.push_str(&format!(
            "| {} | {} | {} + {} each | {:.3} |\n",
            title.trim(),
            values.join(" | "),
            number(line.offset),
            number(line.slope),
            line.fit
        ));
        let file = format!("{name} by {x_name}.svg").to_lowercase().replace([' ', '\''], "-");
        write(&file, &plot::svg(title.trim(), x_name, &points)?)?;
    }
    Ok(text)
}
