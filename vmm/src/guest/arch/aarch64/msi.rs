//! The messages of assigned functions, which the ITS takes.

use std::sync::Arc;

use devices::DevFn;
use vfio_passthrough::host::MsiRouter;
use vfio_passthrough::kvm::KvmHost;

/// The router of the function at `place`. The ITS knows a function by its request ID on bus 0, to
/// which the device tree maps it.
pub(crate) fn msi_router(host: &KvmHost, place: DevFn) -> Arc<dyn MsiRouter> {
    Arc::new(host.router().with_device_id(u8::from(place).into()))
}
