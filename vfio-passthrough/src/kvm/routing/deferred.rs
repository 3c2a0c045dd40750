//! Deferred routes, which are committed later and together.
//!
//! KVM replaces its whole routing table in each `KVM_SET_GSI_ROUTING`, so a guest that unmasks its
//! vectors one by one makes KVM copy a table that grows each time. Instead, the route of a single
//! vector is *deferred*: the vector's eventfd collects interrupts, and is in an epoll set that the
//! VMM polls. One commit then routes all deferred vectors: when one of them fires, when there are
//! 16, or with any other change of the table. When an irqfd is attached, KVM delivers the
//! interrupts that its eventfd has collected.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use super::eventfds::EventfdSet;
use super::shared::Shared;

/// The VMM polls this file descriptor for reading, and calls [`flush`](Self::flush) when it is
/// readable: a vector with a deferred route has fired.
///
/// Dropping it commits all deferred routes. After that each change is committed immediately.
#[derive(Debug)]
pub struct DeferredRoutes {
    shared: Arc<Shared>,
    eventfds: Arc<EventfdSet>,
}

impl DeferredRoutes {
    pub(super) fn new(shared: Arc<Shared>) -> io::Result<Self> {
        let eventfds = Arc::new(EventfdSet::new()?);
        shared.lock().begin_deferring(eventfds.clone())?;
        Ok(Self { shared, eventfds })
    }

    /// Commits all deferred routes if one of their vectors has fired. It does not wait for an
    /// interrupt. If KVM refuses, a warning is logged and no interrupt is lost: the next interrupt
    /// or change retries.
    pub fn flush(&self) {
        self.shared.lock().flush_if_fired();
    }
}

impl AsRawFd for DeferredRoutes {
    fn as_raw_fd(&self) -> RawFd {
        self.eventfds.as_raw_fd()
    }
}

impl Drop for DeferredRoutes {
    fn drop(&mut self) {
        self.shared.lock().end_deferring();
    }
}
