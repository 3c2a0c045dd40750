//! Peer-to-peer DMA: an edu accesses the memory BAR of an ivshmem, and a register of an NVMe.

use guest::Report;

use crate::bar_memory::{self, BAR};
use crate::edu::{self, BUFFER};
use crate::memory::{HALF, Page, value};
use crate::registers::{BAR0, BUS_MASTER, Config, MEMORY, Registers};
use crate::system::Error;
use crate::toggle::{D3_HOT, Subject};

/// The two devices: the edu does the DMA, the ivshmem has the memory.
struct Pair {
    edu: Registers,
    memory: Config,
}

/// Does DMA at the BAR's address, at a new address of the BAR, at its old address, and while its
/// decoding is off.
pub fn work() -> Result<Report, Error> {
    let pair = Pair { edu: open_edu()?, memory: Config::open(&bar_memory::address()?)? };
    let (home, size) = pair.memory.bar(BAR)?;
    let away = home.saturating_add(size);
    let (mut unreached, mut harmed) = (Vec::new(), Vec::new());
    let mut must_reach =
        |what: &str, reached: bool| unreached.extend((!reached).then(|| what.to_owned()));
    let mut must_not_reach =
        |what: &str, same: bool| harmed.extend((!same).then(|| what.to_owned()));

    pair.memory.set_command(MEMORY, true)?;
    must_reach("write", pair.writes(home, 1)?);
    must_reach("read", pair.reads(home, 1)?);
    pair.go(away)?;
    must_reach("write at the new address", pair.writes(away, 2)?);
    pair.fill(away, 3)?;
    pair.write(home, 4)?;
    must_not_reach("write at the old address", pair.is_filled(away, 3)?);
    pair.go(home)?;
    pair.memory.set_command(MEMORY, false)?;
    pair.write(home, 5)?;
    pair.memory.set_command(MEMORY, true)?;
    must_not_reach("write while decoding is off", pair.is_filled(home, 3)?);
    must_reach("write when decoding is on again", pair.writes(home, 6)?);
    Ok(Report::P2p { unreached, harmed })
}

/// Reads the first register of an NVMe by DMA: in D0, in D3hot, in D0 again, during a reset and
/// after it.
pub fn power() -> Result<Report, Error> {
    let (edu, nvme) = (open_edu()?, Subject::open()?);
    let (at, _) = nvme.config.bar(0)?;
    let bars = nvme.bars()?;
    let reads = || Ok(first_word(&edu, at)? == nvme.value);
    let mut found = vec![("read in D0", reads()?, true)];
    nvme.set_power(D3_HOT)?;
    found.push(("read in D3hot", reads()?, false));
    nvme.set_power(0)?;
    found.push(("read in D0 again", reads()?, true));
    nvme.start_reset()?;
    found.push(("read after an FLR without decoding", reads()?, false));
    nvme.end_reset(bars)?;
    found.push(("read after an FLR", reads()?, true));
    let wrong = |reached: bool| -> Vec<String> {
        let wrong = found.iter().filter(|(_, is, should)| is != should && *is == reached);
        wrong.map(|(what, ..)| (*what).to_owned()).collect()
    };
    Ok(Report::P2p { unreached: wrong(false), harmed: wrong(true) })
}

/// The word that DMA reads at `from`. The device's buffer had other words before.
fn first_word(edu: &Registers, from: u64) -> Result<u32, Error> {
    let mut page = Page::new()?;
    page.fill(7);
    edu::transfer(edu, page.physical()?, BUFFER, false);
    edu::transfer(edu, from, BUFFER, false);
    edu::transfer(edu, BUFFER, page.physical()?, true);
    Ok(page.first())
}

fn open_edu() -> Result<Registers, Error> {
    let config = Config::open(&edu::address()?)?;
    config.set_command(MEMORY | BUS_MASTER, true)?;
    Registers::at(config.bar(0)?.0, 4096)
}

impl Pair {
    /// Moves the ivshmem's BAR.
    fn go(&self, to: u64) -> Result<(), Error> {
        let register = BAR0.saturating_add((BAR as u64).saturating_mul(4));
        let bytes = to.to_le_bytes();
        let (low, high) = bytes.split_at(4);
        self.memory.write(register, low)?;
        self.memory.write(register.saturating_add(4), high)
    }

    /// Lets the edu copy a page to `to`.
    fn write(&self, to: u64, seed: u32) -> Result<(), Error> {
        let mut page = Page::new()?;
        page.fill(seed);
        edu::transfer(&self.edu, page.physical()?, BUFFER, false);
        edu::transfer(&self.edu, BUFFER, to, true);
        Ok(())
    }

    /// The same; whether the CPU reads the page's words at `to`.
    fn writes(&self, to: u64, seed: u32) -> Result<bool, Error> {
        self.fill(to, 0)?;
        self.write(to, seed)?;
        self.is_filled(to, seed)
    }

    /// Lets the edu copy words that the CPU wrote at `from` to a page; whether the page has them.
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

/// The indices of the words that DMA moves, each with its offset in bytes.
fn words() -> impl Iterator<Item = (usize, u32)> {
    (0..).step_by(4).zip(0..HALF)
}
