//! KVM's irqfds: eventfds that inject interrupts into a virtual machine (virt/kvm/eventfd.c).

use std::io;

use crate::errno::errno;
use crate::files::{Fd, Kind};
use crate::state::{Assigned, State, System};

/// `struct kvm_irqfd`, for [`System::irqfd`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Irqfd {
    /// The eventfd.
    pub eventfd: Fd,
    /// The number of the interrupt.
    pub gsi: u32,
    /// [`Irqfd::DEASSIGN`] and [`Irqfd::RESAMPLE`].
    pub flags: u32,
    /// With `RESAMPLE`, the eventfd that is signalled when the guest ends the interrupt.
    pub resample: Fd,
}

impl Irqfd {
    /// `KVM_IRQFD_FLAG_DEASSIGN`
    pub const DEASSIGN: u32 = 1;
    /// `KVM_IRQFD_FLAG_RESAMPLE`
    pub const RESAMPLE: u32 = 2;
}

impl System {
    /// `KVM_IRQFD` of a virtual machine with the interrupt controllers of the kernel (`kvm_irqfd`).
    /// The model injects nothing: the eventfd counts on.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: a flag is unknown, or a file is no eventfd.
    /// - `EBADF`: an fd is not open.
    /// - `EBUSY`: the eventfd has an irqfd of this virtual machine; in 7.3, of any. A removal of an
    ///   irqfd that does not exist succeeds.
    pub fn irqfd(&self, kvm: Fd, call: &Irqfd) -> io::Result<()> {
        let mut state = self.state();
        match state.files.kind(kvm)? {
            Kind::Kvm => {}
            _ => return state.unknown_ioctl(kvm),
        }
        if call.flags & !(Irqfd::DEASSIGN | Irqfd::RESAMPLE) != 0 {
            return Err(errno(libc::EINVAL));
        }
        state.files.eventfd(call.eventfd)?;
        let irqfd = Assigned { kvm, eventfd: call.eventfd, gsi: call.gsi };
        if call.flags & Irqfd::DEASSIGN != 0 {
            state.irqfds.retain(|own| *own != irqfd);
            return Ok(());
        }
        if call.flags & Irqfd::RESAMPLE != 0 {
            state.files.eventfd(call.resample)?;
        }
        state.assign(irqfd)
    }
}

impl State {
    fn assign(&mut self, irqfd: Assigned) -> io::Result<()> {
        let excludes_all = self.description.kernel.excludes_irqfds_of_others();
        let is_other =
            |own: &Assigned| own.eventfd == irqfd.eventfd && (own.kvm == irqfd.kvm || excludes_all);
        if self.irqfds.iter().any(is_other) {
            return Err(errno(libc::EBUSY));
        }
        self.irqfds.push(irqfd);
        Ok(())
    }

    /// A virtual machine or an eventfd was closed.
    pub fn forget_irqfds(&mut self, fd: Fd) {
        self.irqfds.retain(|own| own.kvm != fd && own.eventfd != fd);
    }
}
