//! The VMM's own routes in the table that functions share.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use kvm_bindings::kvm_irq_routing_entry;

use super::router::KvmRouter;
use super::shared::Shared;

impl KvmRouter {
    /// Sets the VMM's own routes of the GSIs that `routes` names, in place of those that these GSIs
    /// had; other GSIs keep theirs. One `KVM_SET_GSI_ROUTING`, which commits deferred routes too. A
    /// VM with PICs and an IOAPIC in the kernel starts with the routes of their pins, GSIs 0 to 23,
    /// as KVM itself does.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a GSI in the range that this router gives out, unless it is that of a
    /// [`KvmGsi`], and for what KVM does not accept (Documentation/virt/kvm/api.rst, 4.52).
    /// `ENOSPC` where the table would have more than 4096 entries. After an error all routes are as
    /// they were.
    pub fn set_routes(&self, routes: &[kvm_irq_routing_entry]) -> io::Result<()> {
        self.shared.lock().set_own(routes)
    }

    /// Removes the VMM's own routes of these GSIs, with one `KVM_SET_GSI_ROUTING`. Functions'
    /// routes in the range stay. An irqfd on such a GSI is to be detached before.
    ///
    /// A VMM whose PICs and IOAPIC are not in the kernel (`KVM_CAP_SPLIT_IRQCHIP`) calls
    /// `remove_routes(0..24)` before all else: KVM refuses routes to a pin that it does not have
    /// (`EINVAL`).
    ///
    /// # Errors
    ///
    /// The errno of `KVM_SET_GSI_ROUTING`: all routes are as they were.
    pub fn remove_routes(&self, gsis: Range<u32>) -> io::Result<()> {
        self.shared.lock().remove_own(gsis)
    }

    /// Takes a GSI for the VMM's own use from the range that functions' vectors have theirs from.
    ///
    /// # Errors
    ///
    /// `StorageFull` where none is free.
    pub fn allocate_gsi(&self) -> io::Result<KvmGsi> {
        let number = self.shared.lock().take_own()?;
        Ok(KvmGsi { shared: self.shared.clone(), number })
    }
}

/// A GSI for the VMM's own use. Dropping it removes its routes, with one `KVM_SET_GSI_ROUTING`
/// where it has any, and gives the number back. The VMM detaches its irqfds on the GSI before.
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
