//! QEMU's teaching device (docs/specs/edu.rst): a factorial, and DMA between memory and a buffer of its own.

use std::time::{Duration, Instant};

use guest::Report;

use crate::memory::Page;
use crate::pci;
use crate::registers::{BAR0, BUS_MASTER, Config, MEMORY, Registers};
use crate::report;
use crate::system::Error;
use crate::vfio::Function;

/// 1234:11e8.
const ID: &str = "1234:11e8";
/// Registers.
const IDENTIFICATION: u64 = 0x00;
const FACTORIAL: u64 = 0x08;
const STATUS: u64 = 0x20;
const INTERRUPTS: u64 = 0x24;
const ACKNOWLEDGE: u64 = 0x64;
const SOURCE: u64 = 0x80;
const DESTINATION: u64 = 0x88;
const COUNT: u64 = 0x90;
const COMMAND: u64 = 0x98;
/// The device's own buffer, for DMA only.
pub const BUFFER: u64 = 0x4_0000;
/// How much is moved: half a page.
const LENGTH: u32 = 2048;
/// Bits of the command: begin, to memory, interrupt at the end.
const BEGIN: u32 = 1;
const TO_MEMORY: u32 = 1 << 1;
const INTERRUPT: u32 = 1 << 2;
/// Interrupt when the factorial is there.
const ON_FACTORIAL: u32 = 0x80;
/// Where no memory of the guest is: it has less.
const NOWHERE: u64 = 0x6000_0000;

/// The device's address.
pub fn address() -> Result<String, Error> {
    let found = pci::functions()?.into_iter().find(|function| function.id == ID);
    let missing = || Error::file("find", "an edu device")(std::io::ErrorKind::NotFound.into());
    found.map(|function| function.address).ok_or_else(missing)
}

/// Computes, copies, and strays; each with an interrupt.
pub fn work() -> Result<Report, Error> {
    let edu = Function::open(&address()?)?;
    edu.write(STATUS, ON_FACTORIAL)?;
    edu.write(FACTORIAL, 10)?;
    let mut interrupts = finish(&edu)?;
    let factorial = edu.read(FACTORIAL)?;
    let (mut out, back) = (Page::new()?, Page::new()?);
    out.fill(1);
    interrupts = interrupts.saturating_add(copy(&edu, out.physical()?, BUFFER, 0)?);
    interrupts = interrupts.saturating_add(copy(&edu, BUFFER, back.physical()?, TO_MEMORY)?);
    let copied = back.is_filled(1);
    // Into nowhere and from nowhere; what comes is not ours.
    interrupts = interrupts.saturating_add(copy(&edu, BUFFER, NOWHERE, TO_MEMORY)?);
    interrupts = interrupts.saturating_add(copy(&edu, NOWHERE, BUFFER, 0)?);
    out.fill(2);
    interrupts = interrupts.saturating_add(copy(&edu, out.physical()?, BUFFER, 0)?);
    interrupts = interrupts.saturating_add(copy(&edu, BUFFER, back.physical()?, TO_MEMORY)?);
    Ok(Report::Edu {
        identification: edu.read(IDENTIFICATION)?,
        factorial,
        copied,
        copied_after_straying: back.is_filled(2),
        interrupts,
    })
}

/// Into memory, again and again. The first copy is reported when the second is under way.
pub fn copy_for(time: Duration) -> Result<(), Error> {
    let edu = Function::open(&address()?)?;
    let page = Page::new()?;
    let to = page.physical()?;
    copy(&edu, BUFFER, to, TO_MEMORY)?;
    begin(&edu, BUFFER, to, TO_MEMORY)?;
    report::send(&Report::Copies { done: 1 });
    let end = Instant::now();
    while end.elapsed() < time {
        finish(&edu)?;
        begin(&edu, BUFFER, to, TO_MEMORY)?;
    }
    finish(&edu).map(drop)
}

fn copy(edu: &Function, from: u64, to: u64, direction: u32) -> Result<u64, Error> {
    begin(edu, from, to, direction)?;
    finish(edu)
}

fn begin(edu: &Function, from: u64, to: u64, direction: u32) -> Result<(), Error> {
    // The device takes an address in one access, and one of VFIO's has 32 bits.
    for (register, value) in [(SOURCE, from), (DESTINATION, to), (COUNT, LENGTH.into())] {
        edu.write(register, low_half(value))?;
    }
    edu.write(COMMAND, BEGIN | INTERRUPT | direction)
}

fn low_half(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).unwrap_or_default()
}

/// Waits for the interrupt and acknowledges it.
fn finish(edu: &Function) -> Result<u64, Error> {
    let count = edu.interrupts();
    edu.write(ACKNOWLEDGE, edu.read(INTERRUPTS)?)?;
    Ok(count)
}

/// DMA into the device's buffer or, if `out`, from it, whatever comes of it. The device takes 100 ms.
pub fn transfer(edu: &Registers, from: u64, to: u64, out: bool) {
    for (register, value) in [(SOURCE, from), (DESTINATION, to), (COUNT, LENGTH.into())] {
        edu.write_long(usize::try_from(register).unwrap_or(usize::MAX), value);
    }
    edu.write(COMMAND as usize, BEGIN | if out { TO_MEMORY } else { 0 });
    while edu.read(COMMAND as usize) & BEGIN != 0 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// Moves the BAR: with decoding off, with it on, while DMA runs, onto memory, onto the BAR of another function,
/// and home.
pub fn wander() -> Result<Report, Error> {
    let config = Config::open(&address()?)?;
    let (home, size) = config.bar(0)?;
    config.set_command(MEMORY | BUS_MASTER, true)?;
    let answers = |at: u64| Ok(Registers::at(at, 4096)?.read(0) == IDENTITY);
    let go = |at: u64| config.write(BAR0, &low_half(at).to_le_bytes());
    let mut wrong: Vec<String> = Vec::new();
    let mut expect = |what: &str, holds: Result<bool, Error>| -> Result<(), Error> {
        if !holds? {
            wrong.push(what.to_owned());
        }
        Ok(())
    };
    let away = home.saturating_add(AWAY);
    expect("at home it answers", answers(home))?;
    config.set_command(MEMORY, false)?;
    expect("with decoding off it is silent", answers(home).map(|it| !it))?;
    go(away)?;
    config.set_command(MEMORY, true)?;
    expect("moved with decoding off it answers", answers(away))?;
    expect("where it was it is silent", answers(home).map(|it| !it))?;
    go(home)?;
    expect("moved with decoding on it answers", answers(home))?;
    expect("where it was then it is silent", answers(away).map(|it| !it))?;
    expect("DMA goes on while it moves", dma_while_moving(&config, home, away))?;
    expect("memory under it is untouched", onto_memory(&config, size))?;
    go(home)?;
    expect("back from memory it answers", answers(home))?;
    if let Some((other, value)) = neighbour()? {
        go(other & !size.saturating_sub(1))?;
        let still = Registers::at(other, 4096).map(|it| it.read(STATUS_OF_NIC) == value);
        expect("a BAR under it is untouched", still)?;
        go(home)?;
        let still = Registers::at(other, 4096).map(|it| it.read(STATUS_OF_NIC) == value);
        expect("a BAR that it left is untouched", still)?;
        expect("back from another BAR it answers", answers(home))?;
    }
    Ok(Report::Wander { wrong })
}

/// What the identification register says: version 1.0.
const IDENTITY: u32 = 0x0100_00ed;
/// How far it goes.
const AWAY: u64 = 16 << 20;
/// The e1000e's STATUS register, which says something else than 0 and all-ones.
const STATUS_OF_NIC: usize = 8;

/// The DMA takes 100 ms, during which the BAR moves there and back.
fn dma_while_moving(config: &Config, home: u64, away: u64) -> Result<bool, Error> {
    let (mut out, back) = (Page::new()?, Page::new()?);
    out.fill(3);
    let (from, to) = (out.physical()?, back.physical()?);
    for (source, destination, direction) in [(from, BUFFER, 0), (BUFFER, to, TO_MEMORY)] {
        let registers = Registers::at(home, 4096)?;
        for (register, value) in
            [(SOURCE, source), (DESTINATION, destination), (COUNT, LENGTH.into())]
        {
            registers.write(usize::try_from(register).unwrap_or(usize::MAX), low_half(value));
        }
        registers.write(COMMAND as usize, BEGIN | direction);
        config.write(BAR0, &low_half(away).to_le_bytes())?;
        let moved = Registers::at(away, 4096)?;
        if moved.read(COMMAND as usize) & BEGIN == 0 {
            return Ok(false);
        }
        while moved.read(COMMAND as usize) & BEGIN != 0 {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        config.write(BAR0, &low_half(home).to_le_bytes())?;
    }
    Ok(back.is_filled(3))
}

/// Puts the BAR over a page of ours, which must stay what it is.
fn onto_memory(config: &Config, size: u64) -> Result<bool, Error> {
    let mut page = Page::new()?;
    page.fill(4);
    let place = page.physical()? & !size.saturating_sub(1);
    config.write(BAR0, &low_half(place).to_le_bytes())?;
    let before = page.is_filled(4);
    page.fill(5);
    Ok(before && page.is_filled(5))
}

/// BAR0 of an e1000e, which is taken from its driver, and what its status register says.
fn neighbour() -> Result<Option<(u64, u32)>, Error> {
    let found = pci::functions()?.into_iter().find(|function| function.id == "8086:10d3");
    let Some(function) = found else {
        return Ok(None);
    };
    let config = Config::open(&function.address)?;
    config.set_command(MEMORY, true)?;
    let (base, _) = config.bar(0)?;
    let value = Registers::at(base, 4096)?.read(STATUS_OF_NIC);
    Ok((value != u32::MAX).then_some((base, value)))
}
