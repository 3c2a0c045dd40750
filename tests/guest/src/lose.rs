//! Reads disks until they fail, because the host takes them away.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;

use guest::Report;

use crate::disk::{self, Disk};
use crate::report;
use crate::steps::scattered;
use crate::system::Error;

/// A disk is busy after this many reads.
const BUSY: u64 = 20;
/// The number of blocks that are read, repeatedly and in a scattered order.
const BLOCKS: u64 = 4096;

/// A message from the thread that reads a disk.
enum Event {
    Busy,
    Failed { disk: String, reads: u64, error: String },
}

/// Reads from `disks` disks at the same time, until `lost` of them have failed.
pub fn lose(lost: usize, disks: usize) -> Result<(), Error> {
    let disks = disk::open_all(disks)?;
    let (sender, events) = channel();
    let enough = AtomicBool::new(false);
    let (mut busy, mut failed) = (0_usize, 0_usize);
    thread::scope(|scope| {
        let count = disks.len();
        for disk in disks {
            let (sender, enough) = (sender.clone(), &enough);
            scope.spawn(move || read(disk, &sender, enough));
        }
        drop(sender);
        for event in events {
            match event {
                Event::Busy => {
                    busy = busy.saturating_add(1);
                    if busy == count {
                        report::send(&Report::Busy { disks: busy });
                    }
                }
                Event::Failed { disk, reads, error } => {
                    failed = failed.saturating_add(1);
                    let lost = failed;
                    report::send(&Report::Lost { disk, reads, error, lost });
                }
            }
            if failed >= lost {
                break;
            }
        }
        enough.store(true, Ordering::Relaxed);
    });
    Ok(())
}

/// Reads a disk until it fails, or `enough` is set, or nobody receives the events.
fn read(mut disk: Disk, sender: &Sender<Event>, enough: &AtomicBool) {
    for (reads, offset) in (0..).zip(scattered(BLOCKS)) {
        if enough.load(Ordering::Relaxed) {
            return;
        }
        if reads == BUSY && sender.send(Event::Busy).is_err() {
            return;
        }
        if let Err(error) = disk.read_block(offset) {
            let (disk, error) = (disk.name.clone(), error.to_string());
            let _ = sender.send(Event::Failed { disk, reads, error });
            return;
        }
    }
}
