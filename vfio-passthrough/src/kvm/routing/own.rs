//! The VMM's own routes, in the same table as the routes of functions.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use kvm_bindings::kvm_irq_routing_entry;

use super::router::KvmRouter;
use super::shared::Shared;

impl KvmRouter {
    /// Replaces the VMM's own routes of the GSIs in `routes`. Other GSIs keep their routes. It
    /// makes one `KVM_SET_GSI_ROUTING`, which also commits deferred routes. The table starts with
    /// the routes of pins like KVM's own default table: GSIs 0 to 23 to the PICs and the IOAPIC on
    /// x86, and all GSIs before the MSIs to the GIC's SPIs on arm64.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a GSI in the range of this router, unless it is a [`KvmGsi`], and for a route
    /// that KVM does not accept (Documentation/virt/kvm/api.rst, 4.52). `ENOSPC` if the table would
    /// have more than 4096 entries. An error changes no route.
    pub fn set_routes(&self, routes: &[kvm_irq_routing_entry]) -> io::Result<()> {
        self.shared.lock().set_own(routes)
    }

    /// Removes the VMM's own routes of these GSIs, with one `KVM_SET_GSI_ROUTING`. Functions'
    /// routes in the range stay. The VMM detaches its irqfds on these GSIs before the call.
    ///
    /// A VMM whose PICs and IOAPIC are not in the kernel (`KVM_CAP_SPLIT_IRQCHIP`) first calls
    /// `remove_routes(0..24)`: KVM refuses routes to a pin that it does not have (`EINVAL`).
    ///
    /// # Errors
    ///
    /// The errno of `KVM_SET_GSI_ROUTING`: no route is changed.
    pub fn remove_routes(&self, gsis: Range<u32>) -> io::Result<()> {
        self.shared.lock().remove_own(gsis)
    }

    /// Allocates a GSI for the VMM's own use, from the same range as the GSIs of functions'
    /// vectors.
    ///
    /// # Errors
    ///
    /// `StorageFull` if none is free.
    pub fn allocate_gsi(&self) -> io::Result<KvmGsi> {
        let number = self.shared.lock().take_own()?;
        Ok(KvmGsi { shared: self.shared.clone(), number })
    }
}

/// A GSI for the VMM's own use. Dropping it removes its routes, with one `KVM_SET_GSI_ROUTING` if
/// it has any, and frees the number. The VMM detaches its irqfds on the GSI before that.
#[derive(Debug)]
pub struct KvmGsi {
    shared: Arc<Shared>,
    number: u32,
}

impl KvmGsi {
    /// The number, for a `kvm_irq_routing_entry` and for `KVM_IRQFD`.
    pub fn number(&self) -> u32 {
        self.number
    }
}

impl Drop for KvmGsi {
    fn drop(&mut self) {
        self.shared.lock().release_own(self.number);
    }
}
