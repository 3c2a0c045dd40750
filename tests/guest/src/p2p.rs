//! DMA of one device into the BAR of another: an edu's into an ivshmem's memory.

use guest::Report;

use crate::bar_memory::{self, BAR};
use crate::edu::{self, BUFFER};
use crate::memory::{HALF, Page, value};
use crate::registers::{BAR0, BUS_MASTER, Config, MEMORY, Registers};
use crate::system::Error;

/// The two devices.
struct Pair {
    edu: Registers,
    memory: Config,
}

/// Writes and reads where the BAR is, where it went, where it is no more, and with its decoding off.
pub fn work() -> Result<Report, Error> {
    let config = Config::open(&edu::address()?)?;
    config.set_command(MEMORY | BUS_MASTER, true)?;
    let pair = Pair {
        edu: Registers::at(config.bar(0)?.0, 4096)?,
        memory: Config::open(&bar_memory::address()?)?,
    };
    let (home, size) = pair.memory.bar(BAR)?;
    let away = home.saturating_add(size);
    let (mut unreached, mut harmed) = (Vec::new(), Vec::new());
    let mut reach =
        |what: &str, reached: bool| unreached.extend((!reached).then(|| what.to_owned()));
    let mut spare = |what: &str, spared: bool| harmed.extend((!spared).then(|| what.to_owned()));

    pair.memory.set_command(MEMORY, true)?;
    reach("written", pair.writes(home, 1)?);
    reach("read", pair.reads(home, 1)?);
    pair.go(away)?;
    reach("written where it went", pair.writes(away, 2)?);
    pair.fill(away, 3)?;
    pair.write(home, 4)?;
    spare("where it is no more", pair.is_filled(away, 3)?);
    pair.go(home)?;
    pair.memory.set_command(MEMORY, false)?;
    pair.write(home, 5)?;
    pair.memory.set_command(MEMORY, true)?;
    spare("while decoding is off", pair.is_filled(home, 3)?);
    reach("written when it is on again", pair.writes(home, 6)?);
    Ok(Report::P2p { unreached, harmed })
}

impl Pair {
    fn go(&self, to: u64) -> Result<(), Error> {
        let register = BAR0.saturating_add((BAR as u64).saturating_mul(4));
        let bytes = to.to_le_bytes();
        let (low, high) = bytes.split_at(4);
        self.memory.write(register, low)?;
        self.memory.write(register.saturating_add(4), high)
    }

    /// The edu writes what it read from a page.
    fn write(&self, to: u64, seed: u32) -> Result<(), Error> {
        let mut page = Page::new()?;
        page.fill(seed);
        edu::transfer(&self.edu, page.physical()?, BUFFER, false);
        edu::transfer(&self.edu, BUFFER, to, true);
        Ok(())
    }

    /// It does, and the CPU finds it there.
    fn writes(&self, to: u64, seed: u32) -> Result<bool, Error> {
        self.fill(to, 0)?;
        self.write(to, seed)?;
        self.is_filled(to, seed)
    }

    /// The edu reads what the CPU wrote, and writes it to a page.
    fn reads(&self, from: u64, seed: u32) -> Result<bool, Error> {
        self.fill(from, seed)?;
        let page = Page::new()?;
        edu::transfer(&self.edu, from, BUFFER, false);
        edu::transfer(&self.edu, BUFFER, page.physical()?, true);
        Ok(page.is_filled(seed))
    }

    fn fill(&self, at: u64, seed: u32) -> Result<(), Error> {
        let memory = Registers::at(at, 4096)?;
        words().for_each(|(offset, word)| memory.write(offset, value(seed, word)));
        Ok(())
    }

    fn is_filled(&self, at: u64, seed: u32) -> Result<bool, Error> {
        let memory = Registers::at(at, 4096)?;
        Ok(words().all(|(offset, word)| memory.read(offset) == value(seed, word)))
    }
}

/// The words that are moved, each with its offset.
fn words() -> impl Iterator<Item = (usize, u32)> {
    (0..).step_by(4).zip(0..HALF)
}
