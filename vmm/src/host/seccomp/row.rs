//! The rows of the lists.

use nix::libc;
use vmm_sys_util::ioctl::{_IOC_NONE, _IOC_READ, _IOC_WRITE, ioctl_expr};

/// A system call that a thread may make.
#[derive(Debug)]
pub(crate) struct Row {
    /// The name of the system call, or of the ioctl's request.
    pub(crate) name: &'static str,
    /// The number of the system call.
    pub(crate) call: i64,
    /// The request, if the call is an ioctl.
    pub(crate) request: Option<u32>,
}

macro_rules! calls {
    ($($call:ident)*) => {
        &[$($crate::host::seccomp::row::call(stringify!($call), nix::libc::$call)),*]
    };
}
pub(in crate::host) use calls;

pub(in crate::host) const fn call(name: &'static str, number: i64) -> Row {
    // Remove "SYS_". `str::split_at` is const only since Rust 1.86.
    let (_, name) = name.as_bytes().split_at(4);
    let name = match std::str::from_utf8(name) {
        Ok(name) => name,
        Err(_) => "",
    };
    Row { name, call: number, request: None }
}

pub(in crate::host) const KVM: u32 = 0xae;
/// `VFIO_TYPE`; the numbers start at `VFIO_BASE`, 100 (include/uapi/linux/vfio.h).
const VFIO: u32 = 0x3b;
const TERMINAL: u32 = 0x54;

pub(in crate::host) const fn request(
    name: &'static str,
    direction: u32,
    kind: u32,
    number: u32,
    size: usize,
) -> Row {
    let request = ioctl_expr(direction, kind, number, size as u32);
    Row { name, call: libc::SYS_ioctl, request: Some(request as u32) }
}

pub(in crate::host) const fn kvm(name: &'static str, number: u32) -> Row {
    request(name, _IOC_NONE, KVM, number, 0)
}

pub(in crate::host) const fn kvm_takes<T>(name: &'static str, number: u32) -> Row {
    request(name, _IOC_WRITE, KVM, number, size_of::<T>())
}

pub(in crate::host) const fn kvm_gives<T>(name: &'static str, number: u32) -> Row {
    request(name, _IOC_READ, KVM, number, size_of::<T>())
}

pub(in crate::host) const fn vfio(name: &'static str, number: u32) -> Row {
    request(name, _IOC_NONE, VFIO, number, 0)
}

pub(in crate::host) const fn terminal(name: &'static str, number: u32) -> Row {
    request(name, _IOC_NONE, TERMINAL, number, 0)
}

/// Pairs each `SYS_*` constant of libc with its name.
macro_rules! names {
    ($($call:ident)*) => { &[$((nix::libc::$call, stringify!($call))),*] };
}
pub(in crate::host) use names;
