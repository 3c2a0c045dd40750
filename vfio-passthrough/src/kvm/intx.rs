//! Level-triggered lines of KVM's interrupt controller (Documentation/virt/kvm/api.rst, 4.75:
//! `KVM_IRQFD` with a resample fd).

use std::fmt;
use std::io;
use std::sync::Arc;

use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::errno::errno;
use crate::counters::KvmCalls;
use crate::host::{IntxConnection, IntxLine};

/// Inputs of KVM's interrupt controller, level-triggered, for the pins of a slot.
pub struct KvmLine {
    vm: Arc<VmFd>,
    gsis: [u32; 4],
    calls: Arc<KvmCalls>,
}

impl fmt::Debug for KvmLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvmLine").field("gsis", &self.gsis).finish_non_exhaustive()
    }
}

impl KvmLine {
    /// Makes the lines of the inputs to which `gsis` are routed, for INTA# to INTD#. By default a
    /// GSI is the pin of the same number: of the IOAPIC on x86, and of the GIC's SPIs on arm64. The
    /// controller is in the kernel: a VMM that uses `KVM_CAP_SPLIT_IRQCHIP` implements [`IntxLine`]
    /// itself. Calls are counted in `calls`.
    pub fn new(vm: Arc<VmFd>, gsis: [u32; 4], calls: Arc<KvmCalls>) -> Self {
        Self { vm, gsis, calls }
    }
}

impl IntxLine for KvmLine {
    fn connect(&self, pin: u8) -> io::Result<Box<dyn IntxConnection>> {
        let gsi = usize::from(pin).checked_sub(1).and_then(|index| self.gsis.get(index));
        let gsi = *gsi.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        let eventfd = || EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC).map(Arc::new);
        let (trigger, resample) = (eventfd()?, eventfd()?);
        self.calls.irqfd.increment();
        self.vm.register_irqfd_with_resample(&trigger, &resample, gsi).map_err(errno)?;
        Ok(Box::new(Connection {
            vm: self.vm.clone(),
            gsi,
            calls: self.calls.clone(),
            trigger,
            resample,
        }))
    }
}

struct Connection {
    vm: Arc<VmFd>,
    gsi: u32,
    calls: Arc<KvmCalls>,
    trigger: Arc<EventFd>,
    resample: Arc<EventFd>,
}

impl IntxConnection for Connection {
    fn trigger(&self) -> &Arc<EventFd> {
        &self.trigger
    }

    fn resample(&self) -> &Arc<EventFd> {
        &self.resample
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.calls.irqfd.increment();
        if let Err(error) = self.vm.unregister_irqfd(&self.trigger, self.gsi) {
            log::error!("the irqfd on GSI {} stays: {error}", self.gsi);
        }
    }
}
