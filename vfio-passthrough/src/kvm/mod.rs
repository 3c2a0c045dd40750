//! The host traits on KVM: memory slots, MSI routing and the VFIO device of one VM.

mod intx;
mod link;
mod memory;
mod routing;

use std::io;
use std::ops::Range;
use std::sync::Arc;

use kvm_ioctls::VmFd;

pub use intx::KvmLine;
pub use link::KvmLink;
pub use memory::KvmMemory;
pub use routing::{KvmRouter, SoftwareDelivery};

use crate::counters::KvmCalls;
use crate::host::VmmServices;

/// All that this crate asks of a host VMM, on KVM.
pub struct KvmHost {
    vm: Arc<VmFd>,
    memory: Arc<KvmMemory>,
    router: Arc<KvmRouter>,
    calls: Arc<KvmCalls>,
}

impl KvmHost {
    /// For a VM whose in-kernel interrupt controller has been created.
    ///
    /// `memory_slots` and `gsis` are the numbers that may be used here; nobody else may use them. GSIs must
    /// not be pins of an interrupt controller: on x86, take them from 24 on, up to 4095. The VM's whole
    /// interrupt routing is kept here, the pins of the x86 controllers included: nobody else may set it.
    pub fn new(vm: Arc<VmFd>, memory_slots: Range<u32>, gsis: Range<u32>) -> Self {
        let calls = Arc::new(KvmCalls::default());
        let memory = Arc::new(KvmMemory::new(vm.clone(), memory_slots, calls.clone()));
        let router = Arc::new(KvmRouter::new(vm.clone(), gsis, calls.clone()));
        Self { vm, memory, router, calls }
    }

    /// What a function without a pin asks for.
    pub fn services(&self) -> VmmServices {
        VmmServices { slots: self.memory.clone(), msi: self.router.clone(), intx: None, p2p: None }
    }

    /// What a function asks for whose INTx pin is wired to the interrupt controller's input `gsi`.
    pub fn services_with_intx(&self, gsi: u32) -> VmmServices {
        let line = KvmLine::new(self.vm.clone(), gsi, self.calls.clone());
        VmmServices { intx: Some(Arc::new(line)), ..self.services() }
    }

    /// Lets the VMM deliver the first interrupts of vectors that the guest unmasks one by one, so that their
    /// routes can be committed together: KVM takes its whole table anew in each commit. The VMM must poll what
    /// is returned until it drops it; without it each change is committed at once.
    ///
    /// # Errors
    ///
    /// No epoll set could be made, or there is one already.
    pub fn software_delivery(&self) -> io::Result<SoftwareDelivery> {
        self.router.software_delivery()
    }

    /// The memory slots, for the VMM's own use of them too.
    pub fn memory(&self) -> &Arc<KvmMemory> {
        &self.memory
    }

    /// The calls made so far.
    pub fn calls(&self) -> &KvmCalls {
        &self.calls
    }

    /// Makes the device by which KVM learns of VFIO groups (Documentation/virt/kvm/devices/vfio.rst).
    ///
    /// # Errors
    ///
    /// `ENODEV` where KVM is built without it.
    pub fn link(&self) -> io::Result<Arc<KvmLink>> {
        self.calls.create_device.increment();
        Ok(Arc::new(KvmLink::new(&self.vm)?))
    }
}

fn errno(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}

/// Numbers that are handed out and given back.
fn allocator(range: Range<u32>) -> Option<vm_allocator::IdAllocator> {
    let last = range.end.checked_sub(1)?;
    vm_allocator::IdAllocator::new(range.start, last).ok()
}

#[cfg(test)]
mod tests;
