//! QEMU's models of PCI devices, each with its Linux driver in a guest, and with data through it.
//! docs/models.md has a row for each.

use guest::{Interrupts, Report};
use lab::protocol::Program;
use lab::{DISKS, Device, Error, Guest, L1, Model, NICS, Outcome, SERIAL, place, sha256};

use crate::Test;
use crate::support::VFIO;
use crate::with_host::qemu;

pub const ON_DISKS: &[Test] = &[("models: each controller reads and writes its disk", disks)];
pub const ON_NICS: &[Test] = &[("models: each network controller gets answers", nics)];
pub const ON_SERIAL: &[Test] = &[("models: each serial line loops bytes", serial)];

const HASHED: usize = 1 << 20;
const ASKED: u64 = 50;
const LOOPED: u64 = 1024;

/// The environment variable with the names of the models to try, with commas; without it all.
const CHOSEN: &str = "LAB_MODELS";

/// The guest's kernel prints warnings.
const COMMAND_LINE: &str = "console=ttyS0 panic=-1 loglevel=5";

/// A guest that takes longer, by L1's clock, is killed.
const LIMIT_NS: u64 = 120_000_000_000;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/models.md");

/// The devices of a machine with these models.
pub fn devices(models: &'static [Model]) -> Vec<Device> {
    models.iter().map(Device::Model).collect()
}

fn disks(l1: &mut L1) -> Result<(), Error> {
    check(
        l1,
        DISKS,
        "disks:1,hash:1M,write:64K@8M,interrupts",
        "1 MiB read, 64 KiB written",
        |l1, index, reports| {
            let expected = sha256(&l1.image(index)?[..HASHED]);
            let read =
                |it: &Report| matches!(it, Report::Hash { sha256, .. } if *sha256 == expected);
            let wrote = |it: &Report| matches!(it, Report::Write { same: true, .. });
            Ok(reports.iter().any(read) && reports.iter().any(wrote))
        },
    )
}

fn nics(l1: &mut L1) -> Result<(), Error> {
    check(l1, NICS, &format!("net:{ASKED},interrupts"), "50 requests answered", |_, _, reports| {
        let answered = |it: &Report| matches!(it, Report::Net { answered: ASKED, .. });
        Ok(reports.iter().any(answered))
    })
}

fn serial(l1: &mut L1) -> Result<(), Error> {
    check(l1, SERIAL, "serial:1K,interrupts", "1 KiB looped on each line", |_, index, reports| {
        let looped = |it: &&Report| matches!(it, Report::Serial { bytes: LOOPED, same: true, .. });
        Ok(reports.iter().filter(looped).count() == SERIAL[index].lines())
    })
}

/// Boots a guest with each model in turn, and compares the rows with those of the page.
fn check(
    l1: &mut L1,
    models: &[Model],
    steps: &str,
    data: &str,
    is_right: impl Fn(&mut L1, usize, &[Report]) -> Result<bool, Error>,
) -> Result<(), Error> {
    let page = std::fs::read_to_string(PAGE).unwrap_or_default();
    let mut wrong = Vec::new();
    let chosen = std::env::var(CHOSEN).unwrap_or_default();
    let is_chosen = |name: &str| chosen.is_empty() || chosen.split(',').any(|own| own == name);
    for (index, model) in models.iter().enumerate().filter(|(_, model)| is_chosen(model.name)) {
        let address = l1.machine().address(index);
        l1.bind(&address, VFIO)?;
        let reset = l1.read(&format!("/sys/bus/pci/devices/{address}/reset_method"));
        let reset = reset.map(|text| text.trim().to_owned()).unwrap_or_default();
        let guest = match reset.as_str() {
            "" => Guest::new(steps).device_without_reset(&address),
            _ => Guest::new(steps).device(&address),
        };
        let outcome = match guest.command_line(COMMAND_LINE).kill_after(LIMIT_NS).boot(l1) {
            Ok(outcome) => outcome,
            Err(Error::Log(text)) => {
                wrong.push(format!("{}: {text}", model.name));
                continue;
            }
            Err(error) => return Err(error),
        };
        let works = outcome.is_success() && is_right(l1, index, &outcome.reports)?;
        let data = match works {
            true => data,
            false => verdict(by_qemu(l1, &address, steps, |l1, it| is_right(l1, index, it))?),
        };
        let raised = raised(&outcome, &address);
        let found = outcome.reports.iter().find_map(|report| match report {
            Report::Interrupts { functions } => functions.first(),
            _ => None,
        });
        let row = row(model.name, found, raised, &reset, data);
        println!("{row}");
        if !works {
            println!("{}", outcome.details());
        }
        if !page.contains(&row) {
            wrong.push(row);
        }
    }
    assert!(wrong.is_empty(), "docs/models.md does not have:\n{}", wrong.join("\n"));
    Ok(())
}

/// The words for a model that fails with `vmm`.
fn verdict(works_by_qemu: bool) -> &'static str {
    if works_by_qemu { "FAILS, and works with QEMU as VMM" } else { "fails, with QEMU as VMM too" }
}

/// Does the same with QEMU as VMM in L1; returns whether it works.
fn by_qemu(
    l1: &mut L1,
    device: &str,
    steps: &str,
    is_right: impl Fn(&mut L1, &[Report]) -> Result<bool, Error>,
) -> Result<bool, Error> {
    let command_line = format!("{COMMAND_LINE} guest.do={steps}");
    let files = [place::KERNEL, place::INITRD];
    let program = qemu(l1, files, &[device], "-m 512", command_line)?;
    let program = Program { signal_after: Some((LIMIT_NS, 9)), ..program };
    let run = l1.run(program)?;
    println!("QEMU as VMM:\n{}\n{}", run.stderr, run.stdout);
    is_right(l1, &guest::reports(&run.stdout))
}

/// Whether the device interrupted. A driver of serial lines releases its interrupt when the line is
/// closed, and the guest's kernel forgets the count.
fn raised(outcome: &Outcome, address: &str) -> bool {
    let counts = outcome.stats["devices"][address]["interrupts"].as_object();
    counts.into_iter().flat_map(|counts| counts.values()).any(|count| count.as_u64() != Some(0))
}

fn row(model: &str, found: Option<&Interrupts>, raised: bool, reset: &str, data: &str) -> String {
    let (driver, interrupts) = match found {
        Some(found) if found.count > 0 || raised => {
            let vectors =
                if found.vectors > 1 { format!(", {}", found.vectors) } else { String::new() };
            (found.driver.as_str(), format!("{}{vectors}", found.kind))
        }
        Some(found) => (found.driver.as_str(), "none".to_owned()),
        None => ("-", "-".to_owned()),
    };
    let reset = if reset.is_empty() { "none" } else { reset };
    format!("| {model} | {driver} | {interrupts} | {reset} | {data} |")
}
