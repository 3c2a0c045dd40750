//! The messages of assigned functions, which local APICs take.

use std::sync::Arc;

use devices::DevFn;
use vfio_passthrough::host::MsiRouter;
use vfio_passthrough::kvm::KvmHost;

/// The first GSI for message-signalled interrupts: the one after the IOAPIC's pins.
pub(crate) const FIRST_MSI_GSI: u32 = 24;

/// The router of all functions.
pub(crate) fn msi_router(host: &KvmHost, _: DevFn) -> Arc<dyn MsiRouter> {
    host.router().clone()
}
