//! The router of a VM.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use kvm_ioctls::VmFd;

use super::deferred::DeferredRoutes;
use super::shared::Shared;
use super::table::Table;
use super::vectors::Vectors;
use crate::counters::KvmCalls;
use crate::host::{MsiRouter, MsiVectors};

/// Routes MSIs into the guest by irqfds, and keeps the VM's routing table: those of functions, and
/// the VMM's own.
///
/// `KVM_SET_GSI_ROUTING` replaces the whole table, so a VM has one of these, and nobody else makes
/// that call. A VMM that has routes of its own sets them here ([`set_routes`](Self::set_routes));
/// one that has a table of its own implements [`MsiRouter`] instead (see the example `own_router`).
pub struct KvmRouter {
    pub(super) shared: Arc<Shared>,
}

impl fmt::Debug for KvmRouter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KvmRouter").field(&self.shared).finish()
    }
}

impl KvmRouter {
    /// For a VM whose local APICs are in the kernel. `gsis` are the numbers that vectors get;
    /// nobody else uses them, and no pin of an interrupt controller has one of them: on x86, 24 to
    /// 4095. Calls are counted in `calls`.
    pub fn new(vm: Arc<VmFd>, gsis: Range<u32>, calls: Arc<KvmCalls>) -> Self {
        let table = Table::new(vm, gsis, calls);
        Self { shared: Arc::new(Shared::new(table)) }
    }

    /// Defers the routes of vectors that the guest unmasks one by one, so that they are committed
    /// together, when one of them fires or 16 are deferred. The VMM must poll the value until it
    /// drops it. A VMM that never calls this has each change committed at once.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` where there is one already; the errno of `epoll_create1`.
    pub fn defer_routes(&self) -> io::Result<DeferredRoutes> {
        DeferredRoutes::new(self.shared.clone())
    }
}

impl MsiRouter for KvmRouter {
    fn allocate(&self, count: u16) -> io::Result<Box<dyn MsiVectors>> {
        Ok(Box::new(Vectors::new(self.shared.clone(), count)))
    }
}
