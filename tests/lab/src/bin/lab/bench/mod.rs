//! `cargo lab bench`: the same guest, booted by QEMU and by `vmm` in one L1, in turns.
//!
//! L1's time is the number of instructions that it has run, so what is measured is the software, and two runs
//! of the same differ by about one percent.

mod measure;
mod table;

use std::fs;

use clap::Args;
use lab::protocol::Request;
use lab::{Echo, Error, Kernel, L1, Lab, Machine, place, say, workspace};

use measure::{Figures, Vmm};

/// Where the host's root is in L1.
const HOST: &str = "/host";

#[derive(Args)]
pub struct Arguments {
    /// How often each of the two boots the guest, after one boot that is not counted.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// How many 4 KiB reads the guest makes.
    #[arg(long, default_value_t = 5000)]
    reads: u32,
}

/// Measures, prints a table, and says which goals are met.
pub fn bench(arguments: &Arguments) -> Result<bool, Error> {
    let lab = Lab::set_up_for_bench()?;
    let machine = Machine::new(Kernel::Small).with_host_share();
    lab.kernel(Kernel::Small)?;
    say("booting L1");
    let mut l1 = L1::boot(&lab, &machine, Echo::Silent)?;
    prepare(&mut l1)?;
    let [qemu, ours] = compare(&mut l1, arguments)?;
    println!("{}", table::table(&qemu, &ours, arguments));
    let goals = table::goals(&qemu, &ours);
    goals.iter().for_each(|goal| println!("{goal}"));
    keep(&qemu, &ours)?;
    Ok(goals.iter().all(|goal| goal.is_met()))
}

/// What is timed lies in memory: the host's root is slow to read.
fn prepare(l1: &mut L1) -> Result<(), Error> {
    l1.tell(&Request::Share { at: HOST.into() })?;
    for (from, to) in [
        (place::VMM, "vmm"),
        (place::KERNEL, "kernel"),
        (place::INITRD, "initrd"),
    ] {
        l1.tell(&Request::Copy {
            from: from.into(),
            to: format!("{HOST}/tmp/{to}"),
        })?;
    }
    let device = l1.machine().address(0);
    l1.bind(&device, Some("vfio-pci"))
}

fn compare(l1: &mut L1, arguments: &Arguments) -> Result<[Figures; 2], Error> {
    let mut figures = [Figures::new(Vmm::Qemu), Figures::new(Vmm::Ours)];
    for figures in &mut figures {
        say(&format!(
            "{}: a boot to warm up, then one under strace",
            figures.vmm.name()
        ));
        figures.vmm.boot(l1, arguments.reads)?;
        figures.syscalls = figures.vmm.syscalls(l1)?;
    }
    for round in 1..=arguments.rounds {
        say(&format!("round {round} of {}", arguments.rounds));
        for figures in &mut figures {
            figures.boots.push(figures.vmm.boot(l1, arguments.reads)?);
        }
    }
    Ok(figures)
}

/// For comparisons over time.
fn keep(qemu: &Figures, ours: &Figures) -> Result<(), Error> {
    let folder = workspace().join("target/bench");
    let path = folder.join("vmm-against-qemu.json");
    let text = serde_json::to_string_pretty(&[qemu, ours]).map_err(Error::json("the figures"))?;
    let written = fs::create_dir_all(&folder).and_then(|()| fs::write(&path, text));
    written.map_err(Error::file("write", &path))?;
    say(&format!("all figures are in {}", path.display()));
    Ok(())
}
