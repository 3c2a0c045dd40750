//! QEMU's teaching device (docs/specs/edu.rst). It computes a factorial, and does DMA between
//! memory and its own buffer.

use std::time::{Duration, Instant};

use guest::Report;

use crate::memory::Page;
use crate::pci;
use crate::registers::{BAR0, BUS_MASTER, Config, MEMORY, Registers};
use crate::report;
use crate::system::Error;
use crate::vfio::Function;

/// Vendor and device ID of an edu.
const ID: &str = "1234:11e8";
/// Offsets of registers in BAR0.
const IDENTIFICATION: u64 = 0x00;
const FACTORIAL: u64 = 0x08;
const STATUS: u64 = 0x20;
const INTERRUPTS: u64 = 0x24;
const ACKNOWLEDGE: u64 = 0x64;
const SOURCE: u64 = 0x80;
const DESTINATION: u64 = 0x88;
const COUNT: u64 = 0x90;
const COMMAND: u64 = 0x98;
/// The address of the device's buffer in its own address space; only its DMA reaches it.
pub const BUFFER: u64 = 0x4_0000;
/// The bytes of one transfer: half a page.
const LENGTH: u32 = 2048;
/// Bits of the command register: begin; move to memory; interrupt at the end.
const BEGIN: u32 = 1;
const TO_MEMORY: u32 = 1 << 1;
const INTERRUPT: u32 = 1 << 2;
/// Bit of the status register: interrupt when the factorial is done.
const ON_FACTORIAL: u32 = 0x80;
/// An address above the guest's RAM.
const UNMAPPED: u64 = 0x6000_0000;

/// The PCI address of the edu.
pub fn address() -> Result<String, Error> {
    let found = pci::functions()?.into_iter().find(|function| function.id == ID);
    let missing = || Error::file("find", "an edu device")(std::io::ErrorKind::NotFound.into());
    found.map(|function| function.address).ok_or_else(missing)
}

/// Computes a factorial, copies a page out and back, does DMA at an unmapped address, and copies
/// again. Each operation ends with an interrupt.
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
    // The IOMMU must stop these two; the device completes them with undefined data.
    interrupts = interrupts.saturating_add(copy(&edu, BUFFER, UNMAPPED, TO_MEMORY)?);
    interrupts = interrupts.saturating_add(copy(&edu, UNMAPPED, BUFFER, 0)?);
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

/// Copies into memory until `time` has passed. Reports the first copy while the second one runs.
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
    // The device takes an address in one access, and this program accesses 32 bits at a time. So
    // addresses must be below 4 GiB.
    for (register, value) in [(SOURCE, from), (DESTINATION, to), (COUNT, LENGTH.into())] {
        edu.write(register, low_half(value))?;
    }
    edu.write(COMMAND, BEGIN | INTERRUPT | direction)
}

fn low_half(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).unwrap_or_default()
}

/// Waits for the interrupt and acknowledges it; returns the number of interrupts.
fn finish(edu: &Function) -> Result<u64, Error> {
    let count = edu.interrupts();
    edu.write(ACKNOWLEDGE, edu.read(INTERRUPTS)?)?;
    Ok(count)
}

/// Copies into the device's buffer or, if `out`, from it, and ignores failures. The device takes
/// 100 ms.
pub fn transfer(edu: &Registers, from: u64, to: u64, out: bool) {
    for (register, value) in [(SOURCE, from), (DESTINATION, to), (COUNT, LENGTH.into())] {
        edu.write_long(usize::try_from(register).unwrap_or(usize::MAX), value);
    }
    edu.write(COMMAND as usize, BEGIN | if out { TO_MEMORY } else { 0 });
    while edu.read(COMMAND as usize) & BEGIN != 0 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// Moves the BAR with decoding off, with decoding on, during DMA, over RAM, over the BAR of another
/// function, and back to its first address each time.
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
    expect("the BAR answers at its first address", answers(home))?;
    config.set_command(MEMORY, false)?;
    expect("the BAR does not answer with decoding off", answers(home).map(|it| !it))?;
    go(away)?;
    config.set_command(MEMORY, true)?;
    expect("a BAR moved with decoding off answers", answers(away))?;
    expect("its old address does not answer", answers(home).map(|it| !it))?;
    go(home)?;
    expect("a BAR moved with decoding on answers", answers(home))?;
    expect("its second address does not answer", answers(away).map(|it| !it))?;
    expect("DMA continues during a move", dma_while_moving(&config, home, away))?;
    expect("RAM under the BAR keeps its contents", over_memory(&config, size))?;
    go(home)?;
    expect("a BAR moved away from RAM answers", answers(home))?;
    if let Some((other, value)) = neighbour()? {
        go(other & !size.saturating_sub(1))?;
        let same = Registers::at(other, 4096).map(|it| it.read(STATUS_OF_NIC) == value);
        expect("another BAR under it still answers", same)?;
        go(home)?;
        let same = Registers::at(other, 4096).map(|it| it.read(STATUS_OF_NIC) == value);
        expect("the other BAR answers after the move", same)?;
        expect("a BAR moved away from another BAR answers", answers(home))?;
    }
    Ok(Report::Wander { wrong })
}

/// The value of the identification register: version 1.0.
const IDENTITY: u32 = 0x0100_00ed;
/// The distance that the BAR moves, in bytes.
const AWAY: u64 = 16 << 20;
/// The e1000e's STATUS register, whose value is neither 0 nor all-ones.
const STATUS_OF_NIC: usize = 8;

/// Moves the BAR away while DMA of 100 ms runs, and back after it; whether the data is right.
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

/// Moves the BAR over a page of RAM; whether the page keeps its contents and can be written.
fn over_memory(config: &Config, size: u64) -> Result<bool, Error> {
    let mut page = Page::new()?;
    page.fill(4);
    let place = page.physical()? & !size.saturating_sub(1);
    config.write(BAR0, &low_half(place).to_le_bytes())?;
    let before = page.is_filled(4);
    page.fill(5);
    Ok(before && page.is_filled(5))
}

/// The address of BAR0 of an e1000e, and the value of its status register. Unbinds its driver.
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
