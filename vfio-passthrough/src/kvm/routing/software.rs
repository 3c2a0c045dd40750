//! Interrupts of vectors that wait for their route: the VMM delivers them.
//!
//! KVM takes its whole routing table anew in each commit, and waits for all of its readers each time. A guest
//! that unmasks its vectors one by one would cost a commit each. Instead, a single vector *waits*: its eventfd
//! is in an epoll set, and the VMM, which polls that, signals what fired as a message. Many vectors then share
//! a commit, after which their irqfds take over; and one that fires a second time makes it come at once.
//!
//! The first few of a VM do not wait: a device of few vectors has no commit to share, and one that waits, fires twice and
//! is committed after all costs 12 calls of the kernel in place of 2.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::Shared;

/// So many single vectors of a VM have their routes at once, before the next ones wait.
pub(super) const PROMPT: u32 = 3;

/// So many vectors may wait until the next commit.
pub(super) const PATIENCE: usize = 16;

/// The VMM's part: to poll the file descriptor, and to call [`deliver`](Self::deliver) when it is readable.
///
/// When this is dropped the vectors that wait get their routes, and none waits any more.
pub struct SoftwareDelivery {
    shared: Arc<Shared>,
    waiting: Arc<WaitingSet>,
}

impl SoftwareDelivery {
    pub(super) fn new(shared: Arc<Shared>) -> io::Result<Self> {
        let waiting = Arc::new(WaitingSet(Epoll::new()?));
        shared.lock().begin_waiting(waiting.clone())?;
        Ok(Self { shared, waiting })
    }

    /// Delivers what fired. Never blocks, and does nothing where nothing fired.
    pub fn deliver(&self) {
        self.shared.lock().deliver();
    }
}

impl AsRawFd for SoftwareDelivery {
    fn as_raw_fd(&self) -> RawFd {
        self.waiting.0.as_raw_fd()
    }
}

impl Drop for SoftwareDelivery {
    fn drop(&mut self) {
        self.shared.lock().end_waiting();
    }
}

/// The eventfds of the vectors that wait, by GSI.
pub(super) struct WaitingSet(Epoll);

impl WaitingSet {
    pub(super) fn insert(&self, gsi: u32, eventfd: &EventFd) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN, gsi.into());
        self.0.ctl(ControlOperation::Add, eventfd.as_raw_fd(), event)
    }

    pub(super) fn remove(&self, eventfd: &EventFd) -> io::Result<()> {
        let event = EpollEvent::default();
        self.0.ctl(ControlOperation::Delete, eventfd.as_raw_fd(), event)
    }

    /// The GSIs of those that fired.
    pub(super) fn fired(&self) -> Vec<u32> {
        let mut events = [EpollEvent::default(); PATIENCE];
        let count = self.0.wait(0, &mut events).unwrap_or_else(|error| {
            log::error!("epoll_wait for interrupts: {error}");
            0
        });
        let fired = events.iter().take(count);
        fired.filter_map(|event| u32::try_from(event.data()).ok()).collect()
    }
}
