//! Eventfds: what an interrupt signals, and what unmasks one.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The counter behind an eventfd. The model has one of its own
/// ([`System::open_eventfd`](crate::System::open_eventfd)); a program that is to see its interrupts
/// hands in its real eventfds ([`System::open_eventfd_of`](crate::System::open_eventfd_of)).
pub trait Eventfd: Send + Sync {
    /// Adds 1 to the counter.
    fn signal(&self);

    /// Reads the counter and sets it to 0. It is 0 where a read of an eventfd is EAGAIN.
    fn take(&self) -> u64;
}

/// The model's own.
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

/// An eventfd apart from its file: an interrupt holds it after the file is closed.
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
