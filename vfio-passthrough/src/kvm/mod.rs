//! The host traits on KVM: memory slots, MSI routing, the INTx line, and the VFIO device of one VM.
//!
//! [`KvmHost`] is all of them in one value. A VMM that has its own implementation of one of them,
//! such as an allocator of slots or a routing table, makes the others one by one
//! ([`KvmMemory::new`], [`KvmRouter::new`], [`KvmLine::new`], [`KvmLink::new`]) and puts them into
//! its [`VmmServices`].

mod arch;
mod errno;
mod intx;
mod link;
mod memory;
mod numbers;
mod routing;

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use kvm_ioctls::VmFd;

pub use intx::KvmLine;
pub use link::KvmLink;
pub use memory::KvmMemory;
pub use routing::{DeferredRoutes, KvmGsi, KvmRouter};

use crate::counters::KvmCalls;
use crate::services::VmmServices;

/// All services that this crate needs from a VMM, on KVM.
pub struct KvmHost {
    vm: Arc<VmFd>,
    memory: Arc<KvmMemory>,
    router: Arc<KvmRouter>,
    calls: Arc<KvmCalls>,
}

impl fmt::Debug for KvmHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvmHost")
            .field("memory", &self.memory)
            .field("router", &self.router)
            .field("calls", &self.calls)
            .finish_non_exhaustive()
    }
}

impl KvmHost {
    /// Makes the services of a VM. The VM already has interrupt controllers. On x86 that is all of
    /// them by `KVM_CREATE_IRQCHIP`, or only local APICs by `KVM_CAP_SPLIT_IRQCHIP` (see
    /// [`KvmRouter::remove_routes`]). On arm64 it is an initialized GIC; a function's services have
    /// a router with its device ID (see [`KvmRouter::with_device_id`]).
    ///
    /// `memory_slots` are numbers of memory slots, from 0 to `KVM_CAP_NR_MEMSLOTS` - 1. A BAR takes
    /// one for each part that the guest accesses without an exit: 1, or 2 if the MSI-X table is in
    /// its middle. `gsis` are numbers of interrupt routes, one for each vector in use. On x86 they
    /// begin at 24, after the pins of the IOAPIC, and on arm64 after the SPIs; they end at 4095.
    /// The VMM uses these slots and GSIs only through [`memory`](Self::memory) and [`router`](Self::router). The router also
    /// keeps the VMM's own routes: no other code calls `KVM_SET_GSI_ROUTING`.
    pub fn new(vm: Arc<VmFd>, memory_slots: Range<u32>, gsis: Range<u32>) -> Self {
        let calls = Arc::new(KvmCalls::default());
        let memory = Arc::new(KvmMemory::new(vm.clone(), memory_slots, calls.clone()));
        let router = Arc::new(KvmRouter::new(vm.clone(), gsis, calls.clone()));
        Self { vm, memory, router, calls }
    }

    /// The services of a function whose INTx pin is not wired: the guest sees a function without a
    /// pin.
    pub fn services(&self) -> VmmServices {
        VmmServices { slots: self.memory.clone(), msi: self.router.clone(), intx: None, p2p: None }
    }

    /// The services of a function in a slot whose INTx pins, INTA# to INTD#, are wired to the
    /// interrupt controller's inputs `gsis`.
    pub fn services_with_intx(&self, gsis: [u32; 4]) -> VmmServices {
        let line = KvmLine::new(self.vm.clone(), gsis, self.calls.clone());
        VmmServices { intx: Some(Arc::new(line)), ..self.services() }
    }

    /// The memory slots. The VMM can use them too.
    pub fn memory(&self) -> &Arc<KvmMemory> {
        &self.memory
    }

    /// The VM's routing table. It also keeps the VMM's own routes.
    pub fn router(&self) -> &Arc<KvmRouter> {
        &self.router
    }

    /// The calls made so far.
    pub fn calls(&self) -> &KvmCalls {
        &self.calls
    }

    /// Makes the VM's [`KvmLink`].
    ///
    /// # Errors
    ///
    /// The error of [`KvmLink::new`].
    pub fn link(&self) -> io::Result<Arc<KvmLink>> {
        self.calls.create_device.increment();
        Ok(Arc::new(KvmLink::new(&self.vm)?))
    }
}

// They look at the interrupt controllers of an x86 VM.
#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod tests;
