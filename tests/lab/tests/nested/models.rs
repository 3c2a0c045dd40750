//! QEMU's models of PCI devices, each with its Linux driver in a guest, and with data through it.
//! docs/models.md has a row for each.

mod case;
mod judge;
mod others;

use case::{Case, Place, result};
use guest::{Interrupts, Report};
use lab::protocol::Program;
use lab::{
    APART, DISKS, Device, Error, Guest, I8255X, L1, Model, NICS, OTHERS, OWN_BARS, Outcome,
    SCREENS, SERIAL, SOUND, place, sha256,
};
use serde_json::json;

use crate::Test;
use crate::support::VFIO;
use crate::with_host::qemu;

/// Each test has a machine of its own: most models are on its root bus.
pub const ON_DISKS: &[Test] = &[("models: each controller reads and writes its disk", disks)];
pub const ON_OWN_BARS: &[Test] =
    &[("models: each controller that reads its own BARs reads and writes its disk", own_bars)];
pub const ON_NICS: &[Test] = &[("models: each network controller gets answers", nics)];
pub const ON_I8255X: &[Test] =
    &[("models: each network controller of Intel's 8255x family gets answers", i8255x)];
pub const ON_SERIAL: &[Test] = &[("models: each serial line loops bytes", serial)];
pub const ON_SOUND: &[Test] = &[("models: each sound device plays a tone", sound)];
pub const ON_SCREENS: &[Test] = &[("models: each display shows a colour", screens)];
pub const ON_OTHERS: &[Test] = &[("models: each other device does what it is for", others)];
pub const ON_APART: &[Test] = &[("models: a display and another device, apart", apart)];

const HASHED: usize = 1 << 20;
const ASKED: u64 = 50;
const LOOPED: u64 = 1024;

/// The environment variable with the names of the models to try, with commas; without it all.
const CHOSEN: &str = "LAB_MODELS";

/// The guest's kernel prints warnings, an NVMe has one disk, an ATI has a mode without a palette, and
/// the guest's init may map BARs of a function with a driver.
const COMMAND_LINE: &str = "console=ttyS0 panic=-1 loglevel=5 nvme_core.multipath=0 \
                            aty128fb.mode_option=640x480-32 iomem=relaxed";

/// A guest that takes longer, by L1's clock, is killed.
const LIMIT_NS: u64 = 120_000_000_000;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/models.md");

/// The devices of a machine with these models.
pub fn devices(models: &'static [Model]) -> Vec<Device> {
    models.iter().map(Device::Model).collect()
}

/// Boots a guest with each model in turn, and compares the rows with those of the page.
fn check(l1: &mut L1, models: &[Model], case: impl Fn(&Model) -> Case) -> Result<(), Error> {
    let page = std::fs::read_to_string(PAGE).unwrap_or_default();
    let mut wrong = Vec::new();
    let chosen = std::env::var(CHOSEN).unwrap_or_default();
    let is_chosen = |name: &str| chosen.is_empty() || chosen.split(',').any(|own| own == name);
    for (index, model) in models.iter().enumerate().filter(|(_, model)| is_chosen(model.name)) {
        match row_of(l1, index, model.name, &case(model)) {
            Ok(row) if page.contains(&row) => {}
            Ok(row) => wrong.push(row),
            Err(Error::Log(text)) => wrong.push(format!("{}: {text}", model.name)),
            Err(error) => return Err(error),
        }
    }
    assert!(wrong.is_empty(), "docs/models.md does not have:\n{}", wrong.join("\n"));
    Ok(())
}

/// Boots a guest with a model, and prints its row.
fn row_of(l1: &mut L1, index: usize, model: &str, case: &Case) -> Result<String, Error> {
    let address = l1.machine().address(index);
    l1.bind(&address, VFIO)?;
    let reset = l1.read(&format!("/sys/bus/pci/devices/{address}/reset_method"));
    let reset = reset.map(|text| text.trim().to_owned()).unwrap_or_default();
    let guest = Guest::new(&case.steps).command_line(COMMAND_LINE).kill_after(LIMIT_NS);
    let guest = if case.small { guest.small() } else { guest };
    let guest = case.logs.into_iter().fold(guest, Guest::logs);
    let guest = match reset.as_str() {
        "" => guest.device_without_reset(&address),
        _ => guest.device(&address),
    };
    let output = l1.output(index);
    let along = case.along(Place { index, output: output.clone() });
    let outcome = guest.boot_along(l1, along)?;
    let has_ended = outcome.is_success() || case.panics;
    let works = has_ended && (case.is_right)(l1, index, &outcome.reports)?;
    if !works {
        println!("{}", outcome.details());
    }
    let data = match works {
        true => case.data,
        false => {
            // What the first guest did is no result of the second.
            let _ = std::fs::remove_file(&output);
            verdict(by_qemu(l1, index, case)?)
        }
    };
    let found = outcome.reports.iter().find_map(|report| match report {
        Report::Interrupts { functions } => functions.first(),
        _ => None,
    });
    let row = row(model, found, raised(&outcome, &address), &reset, data);
    println!("{row}");
    Ok(row)
}

fn disks(l1: &mut L1) -> Result<(), Error> {
    check(l1, DISKS, disk)
}

fn own_bars(l1: &mut L1) -> Result<(), Error> {
    check(l1, OWN_BARS, disk)
}

fn disk(_: &Model) -> Case {
    let steps = "disks:1,hash:1M,write:64K@8M,interrupts";
    Case::new(steps, "1 MiB read, 64 KiB written", |l1, index, reports| {
        let expected = sha256(&l1.image(index)?[..HASHED]);
        let read = |it: &Report| matches!(it, Report::Hash { sha256, .. } if *sha256 == expected);
        let wrote = |it: &Report| matches!(it, Report::Write { same: true, .. });
        Ok(reports.iter().any(read) && reports.iter().any(wrote))
    })
}

fn nics(l1: &mut L1) -> Result<(), Error> {
    check(l1, NICS, nic)
}

fn i8255x(l1: &mut L1) -> Result<(), Error> {
    check(l1, I8255X, nic)
}

fn nic(model: &Model) -> Case {
    let microcode = if model.name == "i82551" { "try:microcode," } else { "" };
    let steps = format!("{microcode}net:{ASKED},interrupts");
    Case::new(&steps, "50 requests answered", |_, _, reports| {
        let answered = |it: &Report| matches!(it, Report::Net { answered: ASKED, .. });
        Ok(reports.iter().any(answered))
    })
}

fn serial(l1: &mut L1) -> Result<(), Error> {
    check(l1, SERIAL, |_| {
        let steps = "serial:1K,interrupts";
        Case::new(steps, "1 KiB looped on each line", |_, index, reports| {
            let looped =
                |it: &&Report| matches!(it, Report::Serial { bytes: LOOPED, same: true, .. });
            Ok(reports.iter().filter(looped).count() == SERIAL[index].lines())
        })
    })
}

fn sound(l1: &mut L1) -> Result<(), Error> {
    check(l1, SOUND, |_| {
        let data = "2 s of a tone played, and recorded by the host";
        Case::new("try:sound,interrupts", data, |l1, index, reports| {
            Ok(result(reports, "sound").is_some() && judge::is_tone(&written(l1, index)))
        })
    })
}

fn screens(l1: &mut L1) -> Result<(), Error> {
    check(l1, SCREENS, screen)
}

fn apart(l1: &mut L1) -> Result<(), Error> {
    check(l1, APART, |model| match model.name {
        "vmware-svga" => screen(model),
        _ => others::case(model),
    })
}

fn screen(model: &Model) -> Case {
    let data = "a screen of one colour, seen by the host";
    let turn_on = if model.name == "cirrus-vga" { "try:turn-on," } else { "" };
    let steps = format!("{turn_on}try:screen,mark:1,pause:1000,interrupts");
    let case = Case::new(&steps, data, |l1, index, _| Ok(judge::is_coloured(&written(l1, index))));
    // L1's kernel takes the ROM of the first display for that of each.
    let logs =
        (model.name == "ati-vga").then_some("the ROM is hidden: it is for a device of vendor 1234");
    let case = Case { logs, ..case };
    case.act(|monitor, place, report| match report {
        Report::Mark { .. } => {
            let arguments = json!({"device": place.id(), "filename": place.output});
            monitor.execute("screendump", &arguments).map(drop)
        }
        _ => Ok(()),
    })
}

fn others(l1: &mut L1) -> Result<(), Error> {
    check(l1, OTHERS, others::case)
}

/// What QEMU wrote of a model.
fn written(l1: &L1, index: usize) -> Vec<u8> {
    std::fs::read(l1.output(index)).unwrap_or_default()
}

/// The words for a model that fails with `vmm`.
fn verdict(works_by_qemu: bool) -> &'static str {
    if works_by_qemu { "FAILS, and works with QEMU as VMM" } else { "fails, with QEMU as VMM too" }
}

/// Does the same with QEMU as VMM in L1; returns whether it works.
fn by_qemu(l1: &mut L1, index: usize, case: &Case) -> Result<bool, Error> {
    let command_line = format!("{COMMAND_LINE} guest.do={}", case.steps);
    let address = l1.machine().address(index);
    let files = match case.small {
        true => [place::SMALL_KERNEL, place::SMALL_INITRD],
        false => [place::KERNEL, place::INITRD],
    };
    let program = qemu(l1, files, &[&address], "-m 512", command_line)?;
    let program = Program { signal_after: Some((LIMIT_NS, 9)), ..program };
    let along = case.along(Place { index, output: l1.output(index) });
    let run = l1.run_along(program, along)?;
    println!("QEMU as VMM:\n{}\n{}", run.stderr, run.stdout);
    (case.is_right)(l1, index, &guest::reports(&run.stdout))
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
