//! `cargo lab bench`: QEMU and `vmm` boot the same guest in one L1, in turns.
//!
//! L1's clock counts the instructions that L1 has run, so the bench measures only software. Two
//! runs differ by about one percent.

mod accesses;
mod cost;
mod io;
mod map;
mod measure;
mod plot;
mod qemu;
mod scale;
mod syscalls;
mod table;

use std::fs;

use clap::{Args, ValueEnum};
use lab::protocol::Request;
use lab::{Arch, Echo, Error, Kernel, L1, Lab, Machine, place, say, workspace};
use serde::Serialize;
use serde_json::Value;

use measure::{Boot, Figures, Guest, Vmm};
use qemu::Qemu;
use syscalls::Syscalls;

/// The mount point of the host's root in L1.
const HOST: &str = "/host";

/// A part of the bench.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The start of a guest, compared with QEMU.
    Start,
    /// The cost of an I/O operation, compared with QEMU and with no VMM.
    Io,
    /// The start by number of devices and by size of RAM.
    Scale,
    /// Mapping memory for DMA, and the start, by type1 and by iommufd. Only by name.
    Map,
}

#[derive(Args)]
pub struct Arguments {
    /// The parts to run [default: all]
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// The architecture. Only `start` runs on aarch64, where its guest has Debian's kernel.
    #[arg(long, value_enum, default_value_t)]
    arch: Arch,
    /// How often `start` boots the guest with each VMM, after one boot that is not counted, and how
    /// often `io` measures each.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// The number of 4 KiB reads of the guest.
    #[arg(long, default_value_t = 5000)]
    reads: u32,
    /// The number of operations over which `io` averages. The idle time of L1, which is not counted,
    /// has a resolution of 10 ms for all of them.
    #[arg(long, default_value_t = 20_000)]
    operations: u32,
    /// The RAM of the largest guest of `scale`, or the largest memory of `map`, in MiB. The host
    /// needs 1.5 GiB more than that, and 3
    /// GiB more for 8192.
    #[arg(long, default_value_t = 4096)]
    most_memory: u64,
    /// The kernel of L1 for `map`. `IOMMU_IOAS_MAP_FILE` needs small-7.3.
    #[arg(long, value_enum, default_value_t = Kernel::Small)]
    kernel: Kernel,
}

impl Arguments {
    fn wants(&self, part: Part) -> bool {
        self.parts.is_empty() || self.parts.contains(&part)
    }
}

/// Measures and prints tables; returns whether all goals are met.
pub fn bench(arguments: &Arguments) -> Result<bool, Error> {
    let arch = arguments.arch;
    if arch != Arch::X86_64 && arguments.parts != [Part::Start] {
        return Err(Error::OnlyStart(arch.name()));
    }
    let lab = Lab::set_up_for_bench(arch)?;
    let small = (arch == Arch::X86_64).then(|| lab.kernel(Kernel::Small));
    small.transpose()?;
    let met = !arguments.wants(Part::Start) || start(&lab, arguments)?;
    if arguments.wants(Part::Io) {
        io::run(&lab, arguments.rounds, arguments.operations.into())?;
    }
    let scales = !arguments.wants(Part::Scale) || scale::run(&lab, arguments.most_memory)?;
    let Arguments { kernel, most_memory, rounds, .. } = *arguments;
    let maps =
        !arguments.parts.contains(&Part::Map) || map::run(&lab, kernel, most_memory, rounds)?;
    Ok(met && scales && maps)
}

fn start(lab: &Lab, arguments: &Arguments) -> Result<bool, Error> {
    let is_pc = arguments.arch == Arch::X86_64;
    let kernel = if is_pc { Kernel::Small } else { Kernel::Arm612 };
    let machine = Machine::new(kernel).with_host_share();
    let guest = Guest::with(&[machine.address(0)]);
    let mut l1 = booted(lab, &machine)?;
    let vmms =
        if is_pc { vmms(lab)? } else { vec![Vmm::Qemu(Qemu::of_arm64(&mut l1)?), Vmm::Ours] };
    let mut figures: Vec<Figures> = vmms.iter().cloned().map(Figures::new).collect();
    for figures in &mut figures {
        figures.syscalls = syscalls_of(&mut l1, &figures.vmm, &guest)?;
    }
    let stats = Vmm::Ours.stats(&mut l1, &guest)?;
    let boots = compare(&mut l1, &vmms, &guest, arguments)?;
    figures.iter_mut().zip(boots).for_each(|(figures, boots)| figures.boots = boots);
    drop(l1);
    // Only a PC's CPU has two ways to clear memory.
    if is_pc {
        let mut l1 = booted(lab, &machine.with_byte_strings())?;
        let by_byte = compare(&mut l1, &vmms, &guest, arguments)?;
        figures.iter_mut().zip(by_byte).for_each(|(figures, boots)| figures.boots_by_byte = boots);
    }
    report_start(lab, arguments, kernel, &figures, &stats)
}

/// Prints and keeps the tables of the start; returns whether all goals are met.
fn report_start(
    lab: &Lab,
    arguments: &Arguments,
    kernel: Kernel,
    figures: &[Figures],
    stats: &Value,
) -> Result<bool, Error> {
    let accesses = accesses::rows(stats);
    let text = [
        table::table(figures, kernel, arguments),
        accesses::table(&accesses),
        accesses::exits(stats),
        accesses::phases(stats),
        syscalls::table(figures),
    ]
    .join("\n");
    println!("{text}");
    let name = match arguments.arch {
        Arch::X86_64 => "vmm-against-qemu".to_owned(),
        arch => format!("vmm-against-qemu-{}", arch.name()),
    };
    keep(&name, &text, &(figures, accesses))?;
    let program = lab.vmm_program()?;
    let size = fs::metadata(program).map_err(Error::file("look at", program))?.len();
    let goals = table::goals(figures, size.div_ceil(1024));
    goals.iter().for_each(|goal| println!("{goal}"));
    // The goals are those of a PC. On arm64 they are only printed.
    Ok(arguments.arch != Arch::X86_64 || goals.iter().all(|goal| goal.is_met()))
}

/// The VMMs of the comparison: the host's QEMU first, and `vmm` last.
fn vmms(lab: &Lab) -> Result<Vec<Vmm>, Error> {
    let qemus = std::iter::once(Qemu::hosts()?).chain(Qemu::newest(lab)?);
    Ok(qemus.map(Vmm::Qemu).chain([Vmm::Ours]).collect())
}

/// Boots the guest under strace, and counts the system calls.
fn syscalls_of(l1: &mut L1, vmm: &Vmm, guest: &Guest) -> Result<Syscalls, Error> {
    say(&format!("{}: a boot under strace", vmm.name()));
    let trace = vmm.trace(l1, guest)?;
    write(&format!("{}.strace", vmm.name().replace(' ', "-")), &trace)?;
    Ok(Syscalls::of(&trace))
}

fn booted(lab: &Lab, machine: &Machine) -> Result<L1, Error> {
    say("booting L1");
    let mut l1 = L1::boot(lab, machine, Echo::Silent)?;
    prepare(&mut l1)?;
    Ok(l1)
}

/// Copies the timed programs into L1's memory, because reads from the host's root are slow.
fn prepare(l1: &mut L1) -> Result<(), Error> {
    l1.perform(&Request::Share { at: HOST.into() })?;
    for (from, to) in [(place::VMM, "vmm"), (place::KERNEL, "kernel"), (place::INITRD, "initrd")] {
        l1.perform(&Request::Copy { from: from.into(), to: format!("{HOST}/tmp/{to}") })?;
    }
    let device = l1.machine().address(0);
    l1.bind(&device, Some("vfio-pci"))
}

/// Boots the guest with all VMMs in turns, after one boot of each that is not counted.
fn compare(
    l1: &mut L1,
    vmms: &[Vmm],
    guest: &Guest,
    arguments: &Arguments,
) -> Result<Vec<Vec<Boot>>, Error> {
    let mut boots = vec![Vec::new(); vmms.len()];
    for round in 0..=arguments.rounds {
        say(&format!("round {round} of {}", arguments.rounds));
        for (vmm, boots) in vmms.iter().zip(&mut boots) {
            let boot = vmm.boot(l1, guest, arguments.reads)?;
            boots.extend((round > 0).then_some(boot));
        }
    }
    Ok(boots)
}

/// Writes the table of a part, and its figures as JSON.
fn keep(name: &str, text: &str, figures: &impl Serialize) -> Result<(), Error> {
    let json = serde_json::to_string_pretty(figures).map_err(Error::json("the figures"))?;
    write(&format!("{name}.md"), text)?;
    write(&format!("{name}.json"), &json)
}

/// Writes a file below `target/bench`.
fn write(name: &str, contents: &str) -> Result<(), Error> {
    let folder = workspace().join("target/bench");
    let path = folder.join(name);
    let written = fs::create_dir_all(&folder).and_then(|()| fs::write(&path, contents));
    written.map_err(Error::file("write", &path))?;
    say(&format!("wrote {}", path.display()));
    Ok(())
}
