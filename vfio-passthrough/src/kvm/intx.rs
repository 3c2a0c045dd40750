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

/// An input of KVM's interrupt controller, level-triggered.
pub struct KvmLine {
    vm: Arc<VmFd>,
    gsi: u32,
    calls: Arc<KvmCalls>,
}

impl fmt::Debug for KvmLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvmLine").field("gsi", &self.gsi).finish_non_exhaustive()
    }
}

impl KvmLine {
    /// Makes the line of the input to which the GSI `gsi` is routed. By default it is
    /// the pin of the same number: of the IOAPIC on x86, and of the GIC's SPIs on arm64. The
    /// controller is in the kernel: a VMM that uses `KVM_CAP_SPLIT_IRQCHIP` implements [`IntxLine`]
    /// itself. Calls are counted in `calls`.
    pub fn new(vm: Arc<VmFd>, gsi: u32, calls: Arc<KvmCalls>) -> Self {
        Self { vm, gsi, calls }
    }
}

impl IntxLine for KvmLine {
    fn connect(&self) -> io::Result<Box<dyn IntxConnection>> {
        let eventfd = || EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC).map(Arc::new);
        let (trigger, resample) = (eventfd()?, eventfd()?);
        self.calls.irqfd.increment();
        self.vm.register_irqfd_with_resample(&trigger, &resample, self.gsi).map_err(errno)?;
        Ok(Box::new(Connection {
            vm: self.vm.clone(),
            gsi: self.gsi,
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
