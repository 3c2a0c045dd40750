//! Carries out the steps of a plan.

use std::fs;
use std::thread::{Builder, sleep};
use std::time::{Duration, Instant};

use guest::Report;

use crate::disk::{self, BLOCK, Disk};
use crate::net::{self, Wire};
use crate::plan::Step;
use crate::system::Error;
use crate::{
    bar_memory, button, edu, interrupts, lose, p2p, pci, ports, report, rom, serial, toggle,
    trials, usb, visits,
};

/// Reads go to the first 16 MiB of a disk.
const READ_SPAN: u64 = 16 << 20;

/// How long devices may take to come or leave.
const PATIENCE: Duration = Duration::from_secs(30);

/// The stack size of a thread that reads. Its buffer is on the heap.
const READER_STACK: usize = 64 << 10;

/// Carries out one step and reports it.
pub fn run(step: &Step) -> Result<(), Error> {
    let report = match *step {
        Step::Look => Report::Pci { functions: pci::functions()? },
        Step::Hash { bytes } => return on_disks(|disk| hash(disk, bytes)),
        Step::Write { bytes, offset } => return on_disks(|disk| write(disk, offset, bytes)),
        Step::Read { count, depth } => return on_disks(|disk| read(disk, count, depth)),
        Step::Disks { count } => return disk::open_all(count).map(drop),
        Step::Net { count } => return on_networks(count),
        Step::Serial { bytes } => {
            serial::echo(bytes)?.iter().for_each(report::send);
            return Ok(());
        }
        Step::Usb { count } => usb::look(count)?,
        Step::Networks { count } => {
            return wait_for(count, "networks", || Ok(net::interfaces()?.len()));
        }
        Step::Functions { count } => {
            return wait_for(count, "PCI functions", pci::count);
        }
        Step::Mark { number } => Report::Mark { number },
        Step::Visits { times } => return visits::receive(times),
        Step::Lose { lost, disks } => return lose::lose(lost, disks),
        Step::Interrupts => Report::Interrupts { functions: interrupts::of_functions()? },
        Step::Edu => edu::work()?,
        Step::Copy { milliseconds } => return edu::copy_for(Duration::from_millis(milliseconds)),
        Step::Wander => edu::wander()?,
        Step::P2p => p2p::work()?,
        Step::P2pPower => p2p::power()?,
        Step::Toggle { times } => toggle::toggle(times)?,
        Step::Memory => bar_memory::work()?,
        Step::Ports { times } => ports::work(times)?,
        Step::Rom => {
            rom::look()?.iter().for_each(report::send);
            return Ok(());
        }
        Step::Rebind { times } => return rebind(times),
        Step::Try { name } => return trials::run(name),
        Step::Button { milliseconds } => {
            return button::wait_for(Duration::from_millis(milliseconds));
        }
        Step::Pause { milliseconds } => {
            sleep(Duration::from_millis(milliseconds));
            return Ok(());
        }
    };
    report::send(&report);
    Ok(())
}

/// Waits until there are exactly `expected` of what `count` counts.
fn wait_for(
    expected: usize,
    what: &'static str,
    count: impl Fn() -> Result<usize, Error>,
) -> Result<(), Error> {
    let begin = Instant::now();
    loop {
        match count()? {
            found if found == expected => return Ok(()),
            found if begin.elapsed() > PATIENCE => {
                return Err(Error::Count { what, found, expected });
            }
            _ => sleep(Duration::from_millis(2)),
        }
    }
}

fn on_networks(count: u64) -> Result<(), Error> {
    for interface in net::interfaces()? {
        report::send(&ask(&interface, count)?);
    }
    Ok(())
}

/// Rebinds the driver of every NVMe that has one.
fn rebind(times: u64) -> Result<(), Error> {
    let functions = pci::functions()?;
    for nvme in functions.iter().filter(|function| function.class == pci::NVME_CLASS) {
        let Some(driver) = &nvme.driver else { continue };
        let folder = format!("/sys/bus/pci/drivers/{driver}");
        let write = |file: &str| {
            let path = format!("{folder}/{file}");
            fs::write(&path, &nvme.address).map_err(Error::file("write", &path))
        };
        for _ in 0..times {
            write("unbind")?;
            write("bind")?;
            disk::open_all(1)?;
        }
        report::send(&Report::Rebind { address: nvme.address.clone(), times });
    }
    Ok(())
}

/// Waits until every disk controller has its disk, then does `work` on each disk. A SATA controller
/// without a driver does not count: that is the chipset's, with no disk.
fn on_disks(work: impl Fn(&mut Disk) -> Result<Report, Error>) -> Result<(), Error> {
    let controllers = pci::functions()?
        .iter()
        .filter(|f| f.class == pci::NVME_CLASS || f.class == pci::SATA_CLASS && f.driver.is_some())
        .count();
    for disk in &mut disk::open_all(controllers.max(1))? {
        report::send(&work(disk)?);
    }
    Ok(())
}

fn hash(disk: &mut Disk, bytes: u64) -> Result<Report, Error> {
    Ok(Report::Hash { disk: disk.name.clone(), bytes, sha256: disk.hash(bytes)? })
}

fn write(disk: &mut Disk, offset: u64, bytes: u64) -> Result<Report, Error> {
    disk.write_pattern(offset, bytes)?;
    let same = disk.has_pattern(offset, bytes)?;
    Ok(Report::Write { disk: disk.name.clone(), offset, bytes, same })
}

/// Makes `count` reads by `depth` threads. Nothing is printed between the two reads of the
/// interrupt counts, because that would cause interrupts.
fn read(disk: &Disk, count: u64, depth: u64) -> Result<Report, Error> {
    let blocks = disk.size()?.min(READ_SPAN).checked_div(BLOCK).unwrap_or_default();
    let disks = (0..depth).map(|_| disk.reopen()).collect::<Result<Vec<_>, _>>()?;
    let before = interrupts::counts()?;
    let start = Instant::now();
    let each = |(thread, disk): (u64, Disk)| {
        let offsets = scattered(blocks).take(usize::try_from(count).unwrap_or_default());
        let own = offsets.skip(usize::try_from(thread).unwrap_or_default());
        let own: Vec<u64> = own.step_by(usize::try_from(depth.max(1)).unwrap_or(1)).collect();
        Builder::new().stack_size(READER_STACK).spawn(move || timed_reads(disk, &own))
    };
    let readers: Vec<_> = (0..).zip(disks).map(each).collect();
    let mut times = Vec::new();
    for reader in readers {
        let failed =
            |source| Error::File { action: "read by a thread", path: disk.name.clone(), source };
        let reader = reader.map_err(failed)?;
        times.extend(reader.join().unwrap_or_else(|_| Ok(Vec::new()))?);
    }
    let total_ns = nanoseconds(start.elapsed());
    let after = interrupts::counts()?;
    times.sort_unstable();
    Ok(Report::Read {
        disk: disk.name.clone(),
        depth,
        reads: u64::try_from(times.len()).unwrap_or_default(),
        total_ns,
        median_ns: times.get(times.len() / 2).copied().unwrap_or_default(),
        worst_ns: times.last().copied().unwrap_or_default(),
        interrupts: interrupts::since(&before, &after),
    })
}

fn timed_reads(mut disk: Disk, offsets: &[u64]) -> Result<Vec<u64>, Error> {
    let timed = |offset: &u64| {
        let start = Instant::now();
        disk.read_block(*offset)?;
        Ok(nanoseconds(start.elapsed()))
    };
    offsets.iter().map(timed).collect()
}

fn ask(interface: &str, count: u64) -> Result<Report, Error> {
    let wire = Wire::open(interface)?;
    let before = interrupts::counts()?;
    let mut answered: u64 = 0;
    let start = Instant::now();
    for _ in 0..count {
        answered = answered.saturating_add(u64::from(wire.ask()?));
    }
    Ok(Report::Net {
        interface: interface.to_owned(),
        kind: interrupts::kind(&format!("/sys/class/net/{interface}/device"))?,
        asked: count,
        total_ns: nanoseconds(start.elapsed()),
        answered,
        interrupts: interrupts::since(&before, &interrupts::counts()?),
    })
}

/// Offsets of blocks in a scattered order that defeats read-ahead. The order is always the same.
pub fn scattered(blocks: u64) -> impl Iterator<Item = u64> {
    (1u64..).map(move |n| {
        let mixed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
        mixed.checked_rem(blocks).unwrap_or_default().saturating_mul(BLOCK)
    })
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scattered_offsets_are_within_the_blocks() {
        assert!(scattered(7).take(1000).all(|offset| offset % BLOCK == 0 && offset < 7 * BLOCK));
        assert!(scattered(0).take(3).all(|offset| offset == 0));
    }
}
