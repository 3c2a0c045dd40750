//! A disk comes and leaves repeatedly, while the guest reads from another disk.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use guest::Report;

use crate::disk::{self, BLOCK, Disk};
use crate::report;
use crate::steps::scattered;
use crate::system::Error;

/// The number of bytes that are read of a disk that came.
const READ: u64 = 64 << 10;
/// How long a disk may take to come or to leave.
const PATIENCE: Duration = Duration::from_secs(60);
/// The blocks of the other disk that are read, and the pause after each. A short pause makes a long
/// run of the emulated machine longer.
const BLOCKS: u64 = 16;
const PAUSE: Duration = Duration::from_millis(20);

/// The reads of the other disk.
#[derive(Default)]
struct Reads {
    done: u64,
    wrong: u64,
}

/// Receives a disk `times` times, and waits each time until it has left.
pub fn receive(times: u64) -> Result<(), Error> {
    let known = disk::names();
    let other = disk::open_all(0)?.into_iter().next();
    let has_ended = AtomicBool::new(false);
    let (done, Reads { done: reads, wrong }) = thread::scope(|scope| {
        let reader = scope.spawn(|| other.map(|disk| read(disk, &has_ended)).unwrap_or_default());
        let done = (1..=times).try_for_each(|number| visit(number, &known));
        has_ended.store(true, Ordering::Relaxed);
        (done, reader.join().unwrap_or_default())
    });
    report::send(&Report::Visited { reads, wrong });
    done
}

fn visit(number: u64, known: &[String]) -> Result<(), Error> {
    let mut disk = disk::open_new(known, PATIENCE)?;
    let sha256 = disk.hash(READ)?;
    // The disk is closed before the report, at which the host takes it.
    drop(disk);
    report::send(&Report::Visit { number, sha256 });
    let begin = Instant::now();
    while disk::names() != known {
        if begin.elapsed() > PATIENCE {
            let (found, expected) = (disk::names().len(), known.len());
            return Err(Error::Count { what: "disks", found, expected });
        }
        sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Reads the same blocks until the end, and compares each with its first read.
fn read(mut disk: Disk, has_ended: &AtomicBool) -> Reads {
    let mut first = vec![None; usize::try_from(BLOCKS).unwrap_or_default()];
    let mut reads = Reads::default();
    for offset in scattered(BLOCKS) {
        if has_ended.load(Ordering::Relaxed) {
            break;
        }
        let index = usize::try_from(offset / BLOCK).unwrap_or_default();
        let is_right = match (disk.block(offset), first.get_mut(index)) {
            (Ok(data), Some(first)) => first.get_or_insert_with(|| data.to_vec()) == data,
            _ => false,
        };
        reads.done = reads.done.saturating_add(1);
        reads.wrong = reads.wrong.saturating_add(u64::from(!is_right));
        sleep(PAUSE);
    }
    reads
}
