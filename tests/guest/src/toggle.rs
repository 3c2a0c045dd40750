//! Toggles decoding and the power state of an NVMe and resets it, while another thread reads its
//! registers.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{scope, sleep};
use std::time::Duration;

use guest::Report;

use crate::registers::{BAR0, Config, MEMORY, Registers};
use crate::system::Error;
use crate::{pci, report};

/// IDs of the power management and the PCI Express capability (PCI Code and ID Assignment, 2).
const PM: u8 = 0x01;
const EXPRESS: u8 = 0x10;
/// The power management control register, and the state D3hot, in which a function decodes nothing.
const PM_CONTROL: u64 = 4;
pub const D3_HOT: u16 = 3;
/// The device control register of PCI Express, and its bit that starts an FLR.
const EXPRESS_CONTROL: u64 = 8;
const RESET: u16 = 1 << 15;
/// How long a function may take to be ready (PM 1.2, 5.6.1; PCIe 6.0, 6.6.2).
const FROM_D3: Duration = Duration::from_millis(10);
const FROM_RESET: Duration = Duration::from_millis(100);

/// A progress report is sent at least once for so many repetitions: the lab replaces a machine that
/// prints nothing for long.
const PROGRESS: u64 = 500;

/// The NVMe that is toggled.
pub struct Subject {
    pub config: Config,
    registers: Registers,
    /// The value of the first register, which is not all-ones.
    pub value: u32,
}

impl Subject {
    /// Opens the first NVMe. Its first register is CAP, which is constant.
    pub fn open() -> Result<Self, Error> {
        let functions = pci::functions()?;
        let nvme = functions.iter().find(|function| function.class == pci::NVME_CLASS);
        let missing = || Error::file("find", "an NVMe")(std::io::ErrorKind::NotFound.into());
        let address = &nvme.ok_or_else(missing)?.address;
        let config = Config::open(address)?;
        config.set_command(MEMORY, true)?;
        let registers = Registers::of(address, 0, 4096)?;
        let value = registers.read(0);
        Ok(Self { config, registers, value })
    }

    /// Switches off and on `times` times; returns the number of wrong reads. While off, the
    /// register must read all-ones.
    fn toggle(
        &self,
        times: u64,
        mut off: impl FnMut() -> Result<(), Error>,
        mut on: impl FnMut() -> Result<(), Error>,
    ) -> Result<u64, Error> {
        let mut wrong: u64 = 0;
        let often = (times / 4).clamp(1, PROGRESS);
        for done in 0..times {
            if done.is_multiple_of(often) {
                report::send(&Report::Progress { done });
            }
            off()?;
            wrong = wrong.saturating_add(u64::from(self.registers.read(0) != u32::MAX));
            on()?;
            wrong = wrong.saturating_add(u64::from(self.registers.read(0) != self.value));
        }
        Ok(wrong)
    }

    fn decoding(&self, times: u64) -> Result<u64, Error> {
        let set = |on| self.config.set_command(MEMORY, on);
        self.toggle(times, || set(false), || set(true))
    }

    fn power(&self, times: u64) -> Result<u64, Error> {
        self.toggle(times, || self.set_power(D3_HOT), || self.set_power(0))
    }

    /// Writes a power state. After D0 it waits until the function is ready.
    pub fn set_power(&self, state: u16) -> Result<(), Error> {
        let Some(capability) = self.config.capability(PM)? else {
            return Err(self.lacks("a power management capability"));
        };
        self.config.write(capability.saturating_add(PM_CONTROL), &state.to_le_bytes())?;
        if state == 0 {
            sleep(FROM_D3);
        }
        Ok(())
    }

    fn resets(&self, times: u64) -> Result<u64, Error> {
        let bars = self.bars()?;
        self.toggle(times, || self.start_reset(), || self.end_reset(bars))
    }

    /// The first two BAR registers, which a reset clears.
    pub fn bars(&self) -> Result<[u8; 8], Error> {
        self.config.read(BAR0)
    }

    /// Starts an FLR.
    pub fn start_reset(&self) -> Result<(), Error> {
        let Some(capability) = self.config.capability(EXPRESS)? else {
            return Err(self.lacks("a PCI Express capability"));
        };
        let control = capability.saturating_add(EXPRESS_CONTROL);
        let own = u16::from_le_bytes(self.config.read(control)?);
        self.config.write(control, &(own | RESET).to_le_bytes())
    }

    /// Waits until the function is ready after an FLR, and lets it decode again.
    pub fn end_reset(&self, bars: [u8; 8]) -> Result<(), Error> {
        sleep(FROM_RESET);
        let (low, high) = bars.split_at(4);
        self.config.write(BAR0, low)?;
        self.config.write(BAR0.saturating_add(4), high)?;
        self.config.set_command(MEMORY, true)
    }

    fn lacks(&self, what: &'static str) -> Error {
        Error::file("find", what)(std::io::ErrorKind::NotFound.into())
    }
}

/// Toggles decoding `times` times and the power state `times / 100` times, and resets `times / 500`
/// times, while a thread reads.
pub fn toggle(times: u64) -> Result<Report, Error> {
    let subject = Subject::open()?;
    let (done, reads, strange) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let wrong = scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let read = subject.registers.read(0);
                let is_strange = read != subject.value && read != u32::MAX;
                strange.fetch_add(is_strange.into(), Ordering::Relaxed);
                reads.fetch_add(1, Ordering::Relaxed);
                std::thread::yield_now();
            }
        });
        let (some, few) = (times / 100, times / 500);
        let wrong = subject
            .decoding(times)
            .and_then(|wrong| Ok(wrong.saturating_add(subject.power(some)?)))
            .and_then(|wrong| Ok(wrong.saturating_add(subject.resets(few)?)));
        done.store(true, Ordering::Relaxed);
        wrong
    })?;
    Ok(Report::Toggle {
        times,
        value: subject.value,
        wrong: wrong.saturating_add(strange.into_inner()),
        reads: reads.into_inner(),
    })
}
