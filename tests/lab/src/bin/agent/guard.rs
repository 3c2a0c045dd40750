//! Keeps L2 from getting an interrupt twice.
//!
//! QEMU's emulation of SVM (seen in 7.2) does not forget an interrupt that VMRUN has injected: until the next
//! #VMEXIT, it may deliver it once more, and even while L2 has interrupts off. L2 then counts an interrupt
//! that nobody sent, or takes a lock that it holds and hangs: about one in 25,000 interrupts. An external
//! interrupt of L1's that is pending at VMRUN makes the #VMEXIT come before L2's first instruction, and after
//! the injection.
//!
//! The small kernel's KVM is built to send itself one. In a stock kernel, a probe on the entry of L2, where
//! L1 has interrupts off, does so by a side effect: perf wakes its reader from an interrupt that it sends to
//! itself.

use std::ffi::CString;
use std::fs;
use std::io::{Error, Result};
use std::os::fd::AsRawFd as _;

use nix::mount::{MsFlags, mount};
use perf_event::events::Tracepoint;
use perf_event::{Builder, Sampler};

const TRACING: &str = "/sys/kernel/tracing";

/// A probe on the function of kvm-amd that enters L2, with whether an external interrupt is injected.
const PROBE: &str = "f:lab/enter svm_vcpu_run injected=vcpu->arch.interrupt.injected";

/// Of the wake-ups, only those on injections: one on each entry would keep L2 from running at all.
const FILTER: &str = "injected==1";

/// Room for the samples, which are of no interest; they are thrown away between programs.
const SAMPLES: usize = 16 << 20;

/// The probe, while it lives.
pub struct Guard(Sampler);

// PERF_EVENT_IOC_SET_FILTER. Its number says the size of a pointer, and it takes the string itself.
nix::ioctl_write_ptr_bad!(
    set_filter,
    nix::request_code_write!(b'$', 6, size_of::<*const std::ffi::c_char>()),
    std::ffi::c_char
);

impl Guard {
    /// Sets the probe. Fails on kernels without such probes, among them the small one, which needs none.
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
        // SAFETY: PERF_EVENT_IOC_SET_FILTER reads a string that ends with a zero, as a CString's does, and
        // keeps no pointer to it.
        unsafe { set_filter(sampler.as_counter().as_raw_fd(), filter.as_ptr()) }?;
        sampler.as_counter_mut().enable()?;
        Ok(Self(sampler))
    }

    /// Makes room: without it there are no wake-ups.
    pub fn make_room(&mut self) {
        while self.0.next_record().is_some() {}
    }
}
