//! Populates RAM before the kernel pins it, and reports progress.

use std::io::{IsTerminal, Write, stderr};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::mman::{MmapAdvise, madvise};
use vm_memory::{GuestRegionMmap, MmapRegion};

/// RAM that is being populated with zeroed pages: by threads, and by the one that waits for them.
///
/// Pinning untouched RAM mostly clears pages, which needs no lock and uses any number of CPUs.
/// Opening a device mostly waits for its reset (100 ms for an FLR, PCIe 6.0, 6.6.2). So both run at
/// the same time.
pub(crate) struct Populating {
    /// What the waiting thread populates. A guest of one chunk needs no further thread.
    own: Option<Chunk>,
    threads: Vec<JoinHandle<()>>,
    /// The number of bytes of each populated step.
    steps: Receiver<usize>,
    progress: Progress,
}

const SMALL_STACK: usize = 64 << 10;
/// Bytes per thread.
const CHUNK: usize = 1 << 30;
/// Bytes per progress step, about a tenth of a second.
const STEP: usize = 256 << 20;

impl Populating {
    /// Starts to populate every page of `regions`.
    pub(crate) fn begin(regions: &[Arc<GuestRegionMmap>]) -> Self {
        let (done, steps) = channel();
        let mut chunks = regions.iter().flat_map(|region| {
            let starts = (0..mapping(region).size()).step_by(CHUNK);
            starts.map(move |start| Chunk { region: Arc::clone(region), start })
        });
        let own = chunks.next();
        let threads = chunks.map(|chunk| {
            let name = Builder::new().name("populate".into()).stack_size(SMALL_STACK);
            let done = done.clone();
            name.spawn(move || {
                chunk.populate(|bytes| {
                    // The receiver is gone if the final layout differs.
                    let _ = done.send(bytes);
                });
            })
        });
        let sizes = regions.iter().map(|region| mapping(region).size());
        Self {
            own,
            // If a thread does not start, pinning populates its chunk.
            threads: threads.filter_map(Result::ok).collect(),
            steps,
            progress: Progress::new(sizes.fold(0, usize::saturating_add)),
        }
    }

    /// Populates the rest, and waits for the end. If stderr is a terminal, reports progress after a
    /// second.
    pub(crate) fn wait(mut self) {
        self.finish();
        if self.progress.reported.is_some() {
            print("\n");
        }
    }

    fn finish(&mut self) {
        let Self { own, steps, progress, threads } = self;
        if let Some(chunk) = own.take() {
            chunk.populate(|bytes| progress.report(bytes));
        }
        steps.iter().for_each(|bytes| progress.report(bytes));
        threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

/// Writes to stderr if it is a terminal. A closed terminal is ignored.
fn print(text: &str) {
    if stderr().is_terminal() {
        let _ = stderr().write_all(text.as_bytes());
    }
}

/// Progress is reported only after this time.
const QUIET: Duration = Duration::from_secs(1);

/// The progress so far.
struct Progress {
    begin: Instant,
    done: usize,
    total: usize,
    /// The percentage that was reported last.
    reported: Option<usize>,
}

impl Progress {
    fn new(total: usize) -> Self {
        Self { begin: Instant::now(), done: 0, total, reported: None }
    }

    /// Adds `bytes`, and prints the progress if there is news.
    fn report(&mut self, bytes: usize) {
        let line = self.add(bytes, self.begin.elapsed());
        line.iter().for_each(|line| print(&format!("\r{line}")));
    }

    /// Adds `bytes` at the time `elapsed`; returns a line if the percentage is new.
    fn add(&mut self, bytes: usize, elapsed: Duration) -> Option<String> {
        self.done = self.done.saturating_add(bytes);
        let percent = self.done.saturating_mul(100).checked_div(self.total)?;
        if elapsed < QUIET || self.reported.is_some_and(|reported| reported >= percent) {
            return None;
        }
        self.reported = Some(percent);
        let [done, total] = [self.done, self.total].map(|bytes| bytes >> 20);
        Some(format!("populating guest RAM: {done} of {total} MiB ({percent} %)"))
    }
}

fn mapping(region: &GuestRegionMmap) -> &MmapRegion {
    region
}

/// A piece of a region.
struct Chunk {
    region: Arc<GuestRegionMmap>,
    start: usize,
}

impl Chunk {
    /// Populates the chunk, and calls `done` with the bytes of each step.
    fn populate(self, mut done: impl FnMut(usize)) {
        let Self { region, start } = self;
        let end = mapping(&region).size().min(start.saturating_add(CHUNK));
        for at in (start..end).step_by(STEP) {
            let length = end.saturating_sub(at).min(STEP);
            if let Some(address) = NonNull::new(region.as_ptr().wrapping_add(at).cast()) {
                // SAFETY: MADV_POPULATE_WRITE faults pages in and does not change their contents;
                // the bytes are within the mapping, and `region` keeps the mapping alive.
                let populated =
                    unsafe { madvise(address, length, MmapAdvise::MADV_POPULATE_WRITE) };
                // Linux before 5.14 does not support the advice.
                populated.unwrap_or_else(|e| {
                    log::debug!("MADV_POPULATE_WRITE of guest RAM failed: {e}");
                });
            }
            done(length);
        }
    }
}

#[cfg(test)]
mod tests {
    use resources::AddressRange;

    use super::*;
    use crate::guest::memory::Ram;

    #[test]
    fn reports_progress_after_a_second_and_once_per_percent() {
        let (short, long) = (Duration::from_millis(999), Duration::from_secs(1));
        let mut progress = Progress::new(1 << 30);
        assert_eq!(progress.add(512 << 20, short), None);
        let line = progress.add(64 << 20, long);
        assert_eq!(line.as_deref(), Some("populating guest RAM: 576 of 1024 MiB (56 %)"));
        assert_eq!(progress.add(1 << 20, long), None, "56 % still");
        let line = progress.add(447 << 20, long);
        assert_eq!(line.as_deref(), Some("populating guest RAM: 1024 of 1024 MiB (100 %)"));
    }

    #[test]
    fn counts_every_byte_once() {
        let sizes = [192 << 20, 2 << 20];
        let plan = [AddressRange::new(0, sizes[0]), AddressRange::new(4 << 30, sizes[1])];
        let mut populating = Ram::new(&plan).unwrap().populate();
        populating.finish();
        assert_eq!(populating.progress.done as u64, sizes[0] + sizes[1]);
        assert_eq!(populating.progress.total, populating.progress.done);
    }
}
