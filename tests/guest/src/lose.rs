//! Disks that fail while they are read.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;

use guest::Report;

use crate::disk::{self, Disk};
use crate::report;
use crate::steps::scattered;
use crate::system::Error;

/// Reads of each disk until it counts as busy.
const BUSY: u64 = 20;
/// Blocks that are read, over and over in an order that no read-ahead guesses.
const BLOCKS: u64 = 4096;

/// What comes from the thread of a disk.
enum Word {
    Busy,
    Failed { disk: String, reads: u64, error: String },
}

/// Reads all of so many disks at once, until `lost` of them have failed.
pub fn lose(lost: usize, disks: usize) -> Result<(), Error> {
    let disks = disk::open_all(disks)?;
    let (sender, words) = channel();
    let enough = AtomicBool::new(false);
    let (mut busy, mut failed) = (0_usize, 0_usize);
    thread::scope(|scope| {
        let count = disks.len();
        for disk in disks {
            let (sender, enough) = (sender.clone(), &enough);
            scope.spawn(move || read(disk, &sender, enough));
        }
        drop(sender);
        for word in words {
            match word {
                Word::Busy => {
                    busy = busy.saturating_add(1);
                    if busy == count {
                        report::send(&Report::Busy { disks: busy });
                    }
                }
                Word::Failed { disk, reads, error } => {
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

/// Reads a disk until it fails. If nobody listens any more, it is enough.
fn read(mut disk: Disk, sender: &Sender<Word>, enough: &AtomicBool) {
    for (reads, offset) in (0..).zip(scattered(BLOCKS)) {
        if enough.load(Ordering::Relaxed) {
            return;
        }
        if reads == BUSY && sender.send(Word::Busy).is_err() {
            return;
        }
        if let Err(error) = disk.read_block(offset) {
            let (disk, error) = (disk.name.clone(), error.to_string());
            let _ = sender.send(Word::Failed { disk, reads, error });
            return;
        }
    }
}
