//! The VM of one life of the guest, and the functions that are assigned in it.

use std::sync::Arc;

use kvm_ioctls::{Kvm, VmFd};
use vfio_passthrough::kvm::KvmHost;

use crate::counters::Calls;
use crate::error::Error;
use crate::host::kvm;
use crate::passthrough::coalesced::CoalescedWrites;
use crate::passthrough::devices::Devices;
use crate::passthrough::functions::Functions;

/// GSIs for message-signalled interrupts: above the IOAPIC's pins, up to KVM's limit
/// (`KVM_MAX_IRQ_ROUTES`).
const MSI_GSIS: std::ops::Range<u32> = 24..4096;

/// One life of the guest.
pub(crate) struct Vm {
    /// KVM's side of it.
    pub(crate) fd: Arc<VmFd>,
    /// What assigned functions ask of KVM.
    pub(crate) kvm_host: Arc<KvmHost>,
    /// The guest's writes that may come late.
    pub(crate) coalesced: Arc<CoalescedWrites>,
    /// The assigned functions.
    pub(crate) functions: Functions,
    /// Whether this is the first life.
    pub(crate) is_first: bool,
}

impl Vm {
    /// The VM of the first life, without functions.
    pub(crate) fn new(kvm: &Kvm, calls: &Calls) -> Result<Self, Error> {
        let fd = kvm::create_vm(kvm, calls)?;
        let kvm_host = Arc::new(KvmHost::new(Arc::clone(&fd), 0..memory_slots(kvm), MSI_GSIS));
        Ok(Self {
            coalesced: Arc::default(),
            fd,
            kvm_host,
            functions: Functions::default(),
            is_first: true,
        })
    }

    /// Assigns the functions of `devices`.
    pub(crate) fn take_functions(&mut self, devices: Option<&Devices>) -> Result<(), Error> {
        if let Some(devices) = devices {
            self.functions = devices.functions(&self.kvm_host)?;
        }
        Ok(())
    }
}

fn memory_slots(kvm: &Kvm) -> u32 {
    u32::try_from(kvm.get_nr_memslots()).unwrap_or(u32::MAX)
}
