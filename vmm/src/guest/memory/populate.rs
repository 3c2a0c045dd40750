//! RAM that is filled before it is pinned, and how far that is.

use std::io::{IsTerminal, Write, stderr};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::mman::{MmapAdvise, madvise};
use vm_memory::{GuestRegionMmap, MmapRegion};

/// RAM that is being filled with zeroed pages by threads of their own.
///
/// Pinning RAM that was never touched is mostly clearing pages, which takes no lock and any number
/// of CPUs; and opening a device is mostly waiting for its reset (100 ms for an FLR, PCIe 6.0,
/// 6.6.2). So both go on at once.
pub(crate) struct Populating {
    threads: Vec<JoinHandle<()>>,
    /// How many bytes are there, as they come.
    steps: Receiver<usize>,
    progress: Progress,
}

const SMALL_STACK: usize = 64 << 10;
/// What one thread is worth starting for.
const CHUNK: usize = 1 << 30;
/// What is told of at once: a tenth of a second, or so.
const STEP: usize = 256 << 20;

impl Populating {
    /// Begins to give every page of `regions` its memory.
    pub(crate) fn begin(regions: &[Arc<GuestRegionMmap>]) -> Self {
        let (done, steps) = channel();
        let chunks = regions.iter().flat_map(|region| {
            let starts = (0..mapping(region).size()).step_by(CHUNK);
            starts.map(move |start| (Arc::clone(region), start))
        });
        let threads = chunks.map(|(region, start)| {
            let name = Builder::new().name("populate".into()).stack_size(SMALL_STACK);
            let done = done.clone();
            name.spawn(move || populate(&region, start, &done))
        });
        let sizes = regions.iter().map(|region| mapping(region).size());
        Self {
            // Where a thread does not start, pinning touches its part of the memory.
            threads: threads.filter_map(Result::ok).collect(),
            steps,
            progress: Progress::new(sizes.fold(0, usize::saturating_add)),
        }
    }

    /// Waits until all of it is there. Where that takes its time, a terminal is told how far it is.
    pub(crate) fn wait(mut self) {
        let on_terminal = stderr().is_terminal();
        while let Ok(bytes) = self.steps.recv() {
            let line = self.progress.add(bytes, self.progress.begin.elapsed());
            line.filter(|_| on_terminal).iter().for_each(|line| tell(&format!("\r{line}")));
        }
        if on_terminal && self.progress.told.is_some() {
            tell("\n");
        }
        self.threads.into_iter().for_each(|thread| drop(thread.join()));
    }
}

/// A terminal that is gone is no reason to fail.
fn tell(text: &str) {
    let _ = stderr().write_all(text.as_bytes());
}

/// What takes less is not told.
const SOON: Duration = Duration::from_secs(1);

/// How far it is.
struct Progress {
    begin: Instant,
    done: usize,
    total: usize,
    /// The percentage that was told last.
    told: Option<usize>,
}

impl Progress {
    fn new(total: usize) -> Self {
        Self { begin: Instant::now(), done: 0, total, told: None }
    }

    /// So many bytes more are there after this time; what to say, if it is something new.
    fn add(&mut self, bytes: usize, elapsed: Duration) -> Option<String> {
        self.done = self.done.saturating_add(bytes);
        let percent = self.done.saturating_mul(100).checked_div(self.total)?;
        if elapsed < SOON || self.told.is_some_and(|told| told >= percent) {
            return None;
        }
        self.told = Some(percent);
        let [done, total] = [self.done, self.total].map(|bytes| bytes >> 20);
        Some(format!("guest RAM is made ready: {done} of {total} MiB ({percent} %)"))
    }
}

fn mapping(region: &GuestRegionMmap) -> &MmapRegion {
    region
}

fn populate(region: &GuestRegionMmap, start: usize, done: &Sender<usize>) {
    let end = mapping(region).size().min(start.saturating_add(CHUNK));
    for at in (start..end).step_by(STEP) {
        let length = end.saturating_sub(at).min(STEP);
        if let Some(address) = NonNull::new(region.as_ptr().wrapping_add(at).cast()) {
            // SAFETY: MADV_POPULATE_WRITE faults pages in and changes no contents; these bytes are
            // within the mapping, which the region keeps alive.
            let populated = unsafe { madvise(address, length, MmapAdvise::MADV_POPULATE_WRITE) };
            // Linux before 5.14 has no such advice.
            populated.unwrap_or_else(|e| log::debug!("guest RAM is not populated ahead: {e}"));
        }
        // Nobody waits for it where the layout came to something else.
        let _ = done.send(length);
    }
}

#[cfg(test)]
mod tests {
    use resources::AddressRange;

    use super::*;
    use crate::guest::memory::Ram;

    #[test]
    fn progress_is_told_after_a_second_and_by_the_percent() {
        let (short, long) = (Duration::from_millis(999), Duration::from_secs(1));
        let mut progress = Progress::new(1 << 30);
        assert_eq!(progress.add(512 << 20, short), None);
        let line = progress.add(64 << 20, long);
        assert_eq!(line.as_deref(), Some("guest RAM is made ready: 576 of 1024 MiB (56 %)"));
        assert_eq!(progress.add(1 << 20, long), None, "56 % still");
        let line = progress.add(447 << 20, long);
        assert_eq!(line.as_deref(), Some("guest RAM is made ready: 1024 of 1024 MiB (100 %)"));
    }

    #[test]
    fn every_byte_is_told_of_once() {
        let sizes = [192 << 20, 2 << 20];
        let plan = [AddressRange::new(0, sizes[0]), AddressRange::new(4 << 30, sizes[1])];
        let populating = Ram::new(&plan).unwrap().populate();
        let told: usize = populating.steps.iter().sum();
        assert_eq!(told as u64, sizes[0] + sizes[1]);
        assert_eq!(populating.progress.total, told);
    }
}
