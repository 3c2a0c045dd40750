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
    /// The device ID of the MSIs that it allocates.
    device_id: Option<u32>,
}

impl fmt::Debug for KvmRouter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvmRouter")
            .field("shared", &self.shared)
            .field("device_id", &self.device_id)
            .finish()
    }
}

impl KvmRouter {
    /// Makes the router of a VM whose local APICs or GIC are in the kernel. Vectors get the GSIs in
    /// `gsis`. No other code uses these GSIs, and none is a pin of an interrupt controller. On x86
    /// they are in 24 to 4095. On arm64 all GSIs before them are SPIs, GSI 0 is the interrupt ID
    /// 32, and the GIC is initialized before the first route is set: its initialization replaces
    /// the table. Calls are counted in `calls`.
    pub fn new(vm: Arc<VmFd>, gsis: Range<u32>, calls: Arc<KvmCalls>) -> Self {
        let table = Table::new(vm, gsis, calls);
        Self { shared: Arc::new(Shared::new(table)), device_id: None }
    }

    /// The router of a function which the guest's interrupt controller knows by this device ID. It
    /// shares all else with this router. A GIC's ITS finds the interrupt of a message by it: on
    /// arm64 each function needs a router of its own. The ID is the one to which the guest's device
    /// tree (`msi-map`) or IORT maps the function's requester ID. KVM must have
    /// `KVM_CAP_MSI_DEVID`.
    pub fn with_device_id(&self, id: u32) -> Self {
        Self { shared: self.shared.clone(), device_id: Some(id) }
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
        Ok(Box::new(Vectors::new(self.shared.clone(), self.device_id, count)))
    }
}
