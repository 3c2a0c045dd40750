//! Handles a system call that no list allows: the kernel sends SIGSYS instead of making the call;
//! the handler reports the call and ends the process.

use std::cell::Cell;
use std::ffi::c_int;
use std::fmt::{self, Write};
use std::io::stderr;

use nix::libc::{self, c_void, siginfo_t, ucontext_t};
use vmm_sys_util::signal::register_signal_handler;

use super::{lists, names};
use crate::error::Error;
use crate::host::arch;

/// The exit status: 128 + SIGSYS, as a shell reports a process that the signal ended.
const STATUS: c_int = 128 + libc::SIGSYS;

thread_local! {
        /// The name of this thread's list. A constant without a destructor: reading it is a load.
    static LIST: Cell<&'static str> = const { Cell::new("main") };
}

/// Sets the list of this thread.
pub(crate) fn set_list(list: &'static str) {
    LIST.set(list);
}

/// Installs the handler.
pub(crate) fn listen() -> Result<(), Error> {
    register_signal_handler(libc::SIGSYS, report).map_err(|error| Error::System {
        what: "sigaction(SIGSYS)",
        source: std::io::Error::from_raw_os_error(error.errno()),
    })
}

/// The fields of `siginfo_t` that a filter sets (include/uapi/asm-generic/siginfo.h, `_sigsys`):
/// three ints, the padded address, then the call.
#[repr(C)]
struct Sigsys {
    _kind: [c_int; 3],
    _address: *const c_void,
    call: c_int,
}

/// Only uses what signal-safety(7) allows: allocates nothing, takes no lock, runs no destructor.
extern "C" fn report(_: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a `siginfo_t` of SIGSYS, and `Sigsys` is a prefix of it.
    let call = unsafe { (*info.cast::<Sigsys>()).call };
    // SAFETY: with SA_SIGINFO the kernel passes the interrupted registers.
    let second = arch::second_argument(unsafe { &(*context.cast::<ucontext_t>()).uc_mcontext });
    let mut text = Text::default();
    // A message that is too long is truncated.
    let _ = describe(&mut text, LIST.get(), call.into(), second);
    let _ = nix::unistd::write(stderr(), text.bytes());
    // SAFETY: `_exit` ends the process and runs no code of it.
    unsafe { libc::_exit(STATUS) }
}

fn describe(to: &mut impl Write, list: &str, call: i64, second: i64) -> fmt::Result {
    write!(to, "error: a system call that the {list} thread's seccomp filter does not allow: ")?;
    write!(to, "{} ({call})", names::of(call).unwrap_or("unknown"))?;
    if call == libc::SYS_ioctl {
        // The kernel reads only the low half.
        let request = u32::try_from(second & i64::from(u32::MAX)).unwrap_or_default();
        write!(to, " {request:#x} ({})", lists::request_name(request).unwrap_or("unknown"))?;
    }
    writeln!(
        to,
        "\n  this is a bug of the VMM, or an attacker controls the VMM; \
         '--seccomp log' allows and logs such calls ('dmesg')"
    )
}

/// A text buffer on the stack.
struct Text {
    bytes: [u8; 512],
    length: usize,
}

impl Default for Text {
    fn default() -> Self {
        Self { bytes: [0; 512], length: 0 }
    }
}

impl Text {
    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.length.saturating_add(text.len());
        let room = self.bytes.get_mut(self.length..end).ok_or(fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(call: i64, second: i64) -> String {
        let mut text = Text::default();
        describe(&mut text, "vcpu", call, second).unwrap();
        String::from_utf8(text.bytes().to_vec()).unwrap()
    }

    #[test]
    fn a_violation_names_thread_and_call() {
        let text = described(libc::SYS_openat, 0);
        assert!(
            text.starts_with(&format!(
                "error: a system call that the vcpu thread's seccomp filter does not allow: \
                 openat ({})\n  ",
                libc::SYS_openat
            )) && text.contains("--seccomp log"),
            "{text}"
        );
        assert!(described(9999, 0).contains("unknown (9999)"));
    }

    #[test]
    fn names_an_ioctl_by_its_request() {
        let name = format!("ioctl ({})", libc::SYS_ioctl);
        let text = |second| described(libc::SYS_ioctl, second);
        assert!(text(0xae80).contains(&format!("{name} 0xae80 (KVM_RUN)")));
        assert!(text(-1).contains(&format!("{name} 0xffffffff (unknown)")));
    }

    #[test]
    fn truncates_a_text_that_is_too_long() {
        let mut text = Text::default();
        assert!((0..99).all(|_| text.write_str("12345").is_ok()));
        assert!((0..9).any(|_| text.write_str("12345").is_err()));
        assert!(text.bytes().len() <= 512);
    }
}
