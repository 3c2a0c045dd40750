//! Opens KVM. `arch` creates the VM.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{FromRawFd, IntoRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use kvm_bindings::KVM_API_VERSION;
use kvm_ioctls::{Cap, Kvm};
use nix::errno::Errno;

use super::arch::{MISSING_REMEDY, NEEDED, NEEDED_LINUX, NEEDED_NAME};
use super::passed_fds::PassedFds;
use crate::config::Source;
use crate::error::Error;

/// Opens `/dev/kvm` and checks its capabilities.
pub(crate) fn open() -> Result<Kvm, Error> {
    let path = Path::new("/dev/kvm");
    check(open_at(path)?, path)
}

/// Opens KVM, or takes the passed file descriptor, and checks its capabilities.
pub(crate) fn open_source(source: &Source, passed: &mut PassedFds) -> Result<Kvm, Error> {
    match source {
        Source::Path(path) => check(open_at(path)?, path),
        Source::Fd(fd) => check(from_file(*fd, passed.remove(*fd)?)?, Path::new("fd")),
    }
}

fn check(kvm: Kvm, path: &Path) -> Result<Kvm, Error> {
    match kvm.check_extension(NEEDED) {
        true => Ok(kvm),
        // The ioctls of another file fail.
        false if kvm.get_api_version() < 0 => Err(Error::NotKvm(path.to_owned())),
        false => Err(Error::KvmLacks { what: NEEDED_NAME, least: NEEDED_LINUX }),
    }
}

fn open_at(path: &Path) -> Result<Kvm, Error> {
    let failed = |errno| open_error(path, errno);
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| failed(Errno::ENOENT))?;
    Kvm::new_with_path(name).map_err(|error| failed(Errno::from_raw(error.errno())))
}

fn from_file(fd: RawFd, file: File) -> Result<Kvm, Error> {
    // SAFETY: `file` is an open descriptor, and this call moves its ownership. If the
    // descriptor is not KVM's, its ioctls fail.
    let kvm = unsafe { Kvm::from_raw_fd(file.into_raw_fd()) };
    match u32::try_from(kvm.get_api_version()) {
        Ok(KVM_API_VERSION) => Ok(kvm),
        _ => Err(Error::passed_fd(
            "--kvm",
            fd,
            "the file is not /dev/kvm\n  pass it from a shell with: vmm --kvm fd=3 3<>/dev/kvm",
        )),
    }
}

fn open_error(path: &Path, errno: Errno) -> Error {
    let path = path.to_owned();
    match errno {
        // ENODEV, ENXIO: the module is loaded, and the CPU lacks the feature.
        Errno::ENOENT | Errno::ENODEV | Errno::ENXIO => {
            Error::KvmMissing { path, remedy: MISSING_REMEDY }
        }
        Errno::EACCES => Error::KvmPermission(path),
        // The modes of the node deny with EACCES, a device cgroup with EPERM.
        Errno::EPERM => Error::KvmDenied(path),
        other => Error::KvmOpen { path, source: kvm_ioctls::Error::new(other as i32) },
    }
}

/// The number of memory slots of a VM.
pub(crate) fn memory_slots(kvm: &Kvm) -> u32 {
    u32::try_from(kvm.get_nr_memslots()).unwrap_or(u32::MAX)
}

/// Refuses a guest whose RAM takes more slots than a VM has. BARs can do without: they are trapped.
pub(crate) fn check_slots(most: u32, needed: usize) -> Result<(), Error> {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    match needed > most {
        true => Err(Error::TooFewSlots { needed, most }),
        false => Ok(()),
    }
}

/// The number of routes of a VM (`KVM_CAP_IRQ_ROUTING`, Documentation/virt/kvm/api.rst, 4.52). Each
/// GSI of a message-signalled interrupt takes one.
pub(crate) fn routes(kvm: &Kvm) -> u32 {
    u32::try_from(kvm.check_extension_int(Cap::IrqRouting)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_errno_has_its_remedy() {
        let text = |errno| open_error(Path::new("/dev/kvm2"), errno).to_string();
        assert!(
            text(Errno::ENOENT).starts_with("no /dev/kvm2: ")
                && text(Errno::ENOENT).contains(MISSING_REMEDY)
        );
        assert!(text(Errno::EACCES).starts_with("no permission to open /dev/kvm2\n"));
        assert!(text(Errno::EACCES).contains("usermod -aG kvm"));
        assert!(text(Errno::EPERM).contains("'--device /dev/kvm2'"));
        assert!(text(Errno::EMFILE).starts_with("/dev/kvm2 could not be opened: "));
    }
}
