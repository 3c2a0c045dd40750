//! The guard: it prevents that L2 gets an interrupt twice.
//!
//! QEMU's emulation of SVM (seen in 7.2) keeps an interrupt that VMRUN has injected. Until the next
//! #VMEXIT it may deliver the interrupt again, even while L2 has interrupts off. Then L2 counts one
//! interrupt too many, or takes a lock that it already holds and hangs. This happens about once in
//! 25,000 interrupts. If an external interrupt of L1 is pending at VMRUN, the #VMEXIT follows right
//! after the injection, before L2's first instruction.
//!
//! The small kernel's KVM is modified to send itself such an interrupt. In an unmodified kernel, a
//! probe does so by a side effect. The probe is on the function that enters L2, which runs with
//! L1's interrupts off, and perf wakes its reader by an interrupt that the CPU sends to itself.

use std::ffi::CString;
use std::fs;
use std::io::{Error, Result};
use std::os::fd::AsRawFd as _;

use nix::mount::{MsFlags, mount};
use perf_event::events::Tracepoint;
use perf_event::{Builder, Sampler};

const TRACING: &str = "/sys/kernel/tracing";

/// A probe on kvm-amd's function that enters L2. It records whether an interrupt is injected.
const PROBE: &str = "f:lab/enter svm_vcpu_run injected=vcpu->arch.interrupt.injected";

/// Wake up only for injections. If every entry did so, L2 would never run an instruction.
const FILTER: &str = "injected==1";

/// The size of the buffer for samples. They are not used, and are discarded between programs.
const SAMPLES: usize = 16 << 20;

/// The probe. Dropping it removes the probe.
pub struct Guard(Sampler);

// PERF_EVENT_IOC_SET_FILTER. The number encodes the size of a pointer, but the argument is the
// pointer itself.
nix::ioctl_write_ptr_bad!(
    set_filter,
    nix::request_code_write!(b'$', 6, size_of::<*const std::ffi::c_char>()),
    std::ffi::c_char
);

impl Guard {
    /// Sets the probe. It fails on kernels without such probes, such as the small one, which needs
    /// no probe.
    pub fn set() -> Result<Self> {
        match mount(Some("tracefs"), TRACING, Some("tracefs"), MsFlags::empty(), None::<&str>) {
            Ok(()) | Err(nix::Error::EBUSY) => {}
            Err(errno) => return Err(errno.into()),
        }
        fs::write(format!("{TRACING}/dynamic_events"), PROBE)?;
        let id = fs::read_to_string(format!("{TRACING}/events/lab/enter/id"))?;
        let probe = Tracepoint::with_id(id.trim().parse().map_err(Error::other)?);
        let mut builder = Builder::new(probe);
        builder
            .any_pid()
            .one_cpu(0)
            .include_kernel()
            .include_hv()
            .sample_period(1)
            .wakeup_events(1);
        let mut sampler = builder.build()?.sampled(SAMPLES)?;
        let filter = CString::new(FILTER)?;
        // SAFETY: PERF_EVENT_IOC_SET_FILTER reads a string that ends with zero, which a CString
        // does, and keeps no pointer to it.
        unsafe { set_filter(sampler.as_counter().as_raw_fd(), filter.as_ptr()) }?;
        sampler.as_counter_mut().enable()?;
        Ok(Self(sampler))
    }

    /// Discards the samples: perf does not wake its reader while the buffer is full.
    pub fn make_room(&mut self) {
        while self.0.next_record().is_some() {}
    }
}
