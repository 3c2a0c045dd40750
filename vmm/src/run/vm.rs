//! The VM of one life of the guest, and its assigned functions.

use std::sync::Arc;

use kvm_ioctls::{Kvm, VmFd};
use vfio_passthrough::kvm::KvmHost;

use crate::counters::Calls;
use crate::error::Error;
use crate::guest::arch::FIRST_MSI_GSI;
use crate::host::arch::create_vm;
use crate::host::kvm;
use crate::passthrough::coalesced::CoalescedWrites;
use crate::passthrough::functions::Functions;

/// The VM of one life of the guest.
pub(crate) struct Vm {
    pub(crate) fd: Arc<VmFd>,
    /// The services that KVM provides to assigned functions.
    pub(crate) kvm_host: Arc<KvmHost>,
    /// The number of memory slots.
    pub(crate) slots: u32,
    /// The guest's coalesced writes.
    pub(crate) coalesced: Arc<CoalescedWrites>,
    pub(crate) functions: Functions,
    /// Whether this is the first life.
    pub(crate) is_first: bool,
}

impl Vm {
    /// The VM of the first life, without functions.
    pub(crate) fn new(kvm: &Kvm, calls: &Calls) -> Result<Self, Error> {
        let fd = create_vm(kvm, calls)?;
        let gsis = FIRST_MSI_GSI..kvm::routes(kvm);
        let slots = kvm::memory_slots(kvm);
        let kvm_host = Arc::new(KvmHost::new(Arc::clone(&fd), 0..slots, gsis));
        Ok(Self {
            coalesced: Arc::default(),
            fd,
            kvm_host,
            slots,
            functions: Functions::default(),
            is_first: true,
        })
    }
}
