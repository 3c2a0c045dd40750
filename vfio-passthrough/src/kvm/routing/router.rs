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

/// Routes MSIs into the guest by irqfds. It keeps the VM's routing table: the routes of functions,
/// and the VMM's own routes.
///
/// `KVM_SET_GSI_ROUTING` replaces the whole table, so a VM has one router, and no other code makes
/// that call. A VMM sets its own routes here ([`set_routes`](Self::set_routes)). A VMM that keeps
/// its own table implements [`MsiRouter`] instead (see the example `own_router`).
pub struct KvmRouter {
    pub(super) shared: Arc<Shared>,
}

impl fmt::Debug for KvmRouter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KvmRouter").field(&self.shared).finish()
    }
}

impl KvmRouter {
    /// Makes the router of a VM whose local APICs are in the kernel. Vectors get the GSIs in
    /// `gsis`. No other code uses these GSIs, and none is a pin of an interrupt controller: on x86
    /// they are in 24 to 4095. Calls are counted in `calls`.
    pub fn new(vm: Arc<VmFd>, gsis: Range<u32>, calls: Arc<KvmCalls>) -> Self {
        let table = Table::new(vm, gsis, calls);
        Self { shared: Arc::new(Shared::new(table)) }
    }

    /// The number of GSIs in use.
    pub fn in_use(&self) -> u32 {
        self.shared.lock().used()
    }

    /// Defers the routes of vectors that the guest unmasks one by one. They are committed together,
    /// when one of them fires or when 16 are deferred. The VMM must poll the value until it drops
    /// it. Without this call each change is committed immediately.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` if routes are already deferred; the errno of `epoll_create1`.
    pub fn defer_routes(&self) -> io::Result<DeferredRoutes> {
        DeferredRoutes::new(self.shared.clone())
    }
}

impl MsiRouter for KvmRouter {
    fn allocate(&self, count: u16) -> io::Result<Box<dyn MsiVectors>> {
        Ok(Box::new(Vectors::new(self.shared.clone(), count)))
    }
}
