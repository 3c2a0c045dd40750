//! Opening KVM, and the VM with its in-kernel interrupt controllers.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{FromRawFd, IntoRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use kvm_bindings::KVM_API_VERSION;
use kvm_ioctls::{Cap, Kvm, VmFd};
use nix::errno::Errno;

use super::passed_fds::PassedFds;
use crate::config::Source;
use crate::counters::Calls;
use crate::error::Error;

/// Three pages that KVM takes on Intel hosts for real mode: below 4 GiB, clear of everything else.
const TSS: usize = 0xfffb_d000;

/// The youngest of what this VMM cannot do without, and how errors call it: a KVM that has it
/// (Linux 3.2) has user memory, interrupt controllers, irqfds and extended CPUID too.
const NEEDED: Cap = Cap::TscDeadlineTimer;
const NEEDED_NAME: &str = "the TSC deadline timer (KVM_CAP_TSC_DEADLINE_TIMER)";

/// Opens `/dev/kvm` and checks that it can do what is needed.
pub(crate) fn open() -> Result<Kvm, Error> {
    check(open_at(Path::new("/dev/kvm"))?)
}

/// Opens KVM, unless it was passed in already open, and checks that it can do what is needed.
pub(crate) fn given(source: &Source, passed: &mut PassedFds) -> Result<Kvm, Error> {
    match source {
        Source::Path(path) => check(open_at(path)?),
        Source::Fd(fd) => check(taken(*fd, passed.remove(*fd)?)?),
    }
}

fn check(kvm: Kvm) -> Result<Kvm, Error> {
    match kvm.check_extension(NEEDED) {
        true => Ok(kvm),
        false => Err(Error::KvmLacks(NEEDED_NAME)),
    }
}

fn open_at(path: &Path) -> Result<Kvm, Error> {
    let failed = |errno| open_error(path, errno);
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| failed(Errno::ENOENT))?;
    Kvm::new_with_path(name).map_err(|error| failed(Errno::from_raw(error.errno())))
}

fn taken(fd: RawFd, file: File) -> Result<Kvm, Error> {
    // SAFETY: an open file that this owns and hands over. Where it is not KVM's, its calls fail.
    let kvm = unsafe { Kvm::from_raw_fd(file.into_raw_fd()) };
    match u32::try_from(kvm.get_api_version()) {
        Ok(KVM_API_VERSION) => Ok(kvm),
        _ => Err(Error::passed_fd(
            "--kvm",
            fd,
            "it is not KVM's\n  a shell passes that so: vmm --kvm fd=3 3<>/dev/kvm",
        )),
    }
}

fn open_error(path: &Path, errno: Errno) -> Error {
    let path = path.to_owned();
    match errno {
        // No such file; no such device: the module is there, the CPU feature is not.
        Errno::ENOENT | Errno::ENODEV | Errno::ENXIO => Error::KvmMissing(path),
        Errno::EACCES | Errno::EPERM => Error::KvmPermission(path),
        other => Error::KvmOpen { path, source: kvm_ioctls::Error::new(other as i32) },
    }
}

/// Creates a VM with PIC, IOAPIC and local APICs in the kernel.
///
/// There is no PIT: Linux takes its clock from kvmclock and its timer from the TSC deadline, and
/// hardware-reduced ACPI tells it not to look for one.
pub(crate) fn create_vm(kvm: &Kvm, calls: &Calls) -> Result<Arc<VmFd>, Error> {
    let vm = kvm.create_vm().map_err(Error::kvm("KVM_CREATE_VM"))?;
    calls.add("create_vm", 1);
    vm.set_tss_address(TSS).map_err(Error::kvm("KVM_SET_TSS_ADDR"))?;
    calls.add("set_tss_addr", 1);
    vm.create_irq_chip().map_err(Error::kvm("KVM_CREATE_IRQCHIP"))?;
    calls.add("create_irqchip", 1);
    Ok(Arc::new(vm))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_errno_has_its_advice() {
        let text = |errno| open_error(Path::new("/dev/kvm2"), errno).to_string();
        assert!(
            text(Errno::ENOENT).starts_with("no /dev/kvm2: ")
                && text(Errno::ENOENT).contains("modprobe kvm")
        );
        assert!(text(Errno::EACCES).starts_with("no permission to open /dev/kvm2\n"));
        assert!(text(Errno::EACCES).contains("usermod -aG kvm"));
        assert!(text(Errno::EMFILE).starts_with("/dev/kvm2 could not be opened: "));
    }
}
