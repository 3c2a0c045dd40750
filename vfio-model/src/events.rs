//! Eventfds: an interrupt signals one, and one can unmask INTx.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The counter of an eventfd. The model has its own counters
/// ([`System::open_eventfd`](crate::System::open_eventfd)); a program that waits for interrupts
/// implements this trait for its real eventfds
/// ([`System::open_eventfd_of`](crate::System::open_eventfd_of)).
pub trait Eventfd: Send + Sync {
    /// Adds 1 to the counter.
    fn signal(&self);

    /// Reads the counter and sets it to 0. The value is 0 where a read returns `EAGAIN`.
    fn take(&self) -> u64;
}

/// A counter in the model.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Eventfd for Counter {
    fn signal(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn take(&self) -> u64 {
        self.0.swap(0, Ordering::Relaxed)
    }
}

/// An eventfd without its file: an interrupt holds it after the file is closed.
#[derive(Clone)]
pub(crate) struct Event(pub Arc<dyn Eventfd>);

impl Event {
    pub fn signal(&self) {
        self.0.signal();
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Event")
    }
}
