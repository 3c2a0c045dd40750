//! Calls with a file.

use std::ffi::{c_int, c_ulong, c_void};
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::{answered, next, value_or};
use crate::host::Host;

/// Replaces a function: the machine answers it, or the C library.
macro_rules! replaced {
    ($(fn $name:ident($($argument:ident: $type:ty),*) -> $result:ty = $answer:expr;)*) => {$(
        /// Replaces the C library's function.
        ///
        /// # Safety
        ///
        /// That of the C library's function.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> $result {
            let answer: fn(&Host, $($type),*) -> Option<io::Result<$result>> = $answer;
            match answered(|host| answer(host, $($argument),*)) {
                Some(result) => value_or(-1, result),
                None => next!($name($($argument: $type),*) -> $result, -1),
            }
        }
    )*};
}

replaced! {
    fn close(fd: c_int) -> c_int = |host, fd| host.close(fd, close_number);
    fn dup2(from: c_int, to: c_int) -> c_int = |host, from, to| {
        host.close(to, |to| {
            // SAFETY: the program gives up what `to` was.
            Errno::result(unsafe { libc::dup2(from, to) }).map_err(io::Error::from)
        })
    };
    fn dup3(from: c_int, to: c_int, flags: c_int) -> c_int = |host, from, to, flags| {
        host.close(to, |to| {
            // SAFETY: the program gives up what `to` was.
            Errno::result(unsafe { libc::dup3(from, to, flags) }).map_err(io::Error::from)
        })
    };
    fn ioctl(fd: c_int, request: c_ulong, argument: usize) -> c_int = Host::ioctl;
    fn read(fd: c_int, to: *mut c_void, length: usize) -> isize =
        |host, fd, to, length| at_position(fd, |at| host.read(fd, at, to as usize, length));
    fn write(fd: c_int, from: *const c_void, length: usize) -> isize =
        |host, fd, from, length| at_position(fd, |at| host.write(fd, at, from as usize, length));
    fn pread(fd: c_int, to: *mut c_void, length: usize, at: i64) -> isize =
        |host, fd, to, length, at| host.read(fd, at, to as usize, length);
    fn pread64(fd: c_int, to: *mut c_void, length: usize, at: i64) -> isize =
        |host, fd, to, length, at| host.read(fd, at, to as usize, length);
    // What a program calls that was compiled with `_FORTIFY_SOURCE`.
    fn __read_chk(fd: c_int, to: *mut c_void, length: usize, _room: usize) -> isize =
        |host, fd, to, length, _| at_position(fd, |at| host.read(fd, at, to as usize, length));
    fn __pread_chk(fd: c_int, to: *mut c_void, length: usize, at: i64, _room: usize) -> isize =
        |host, fd, to, length, at, _| host.read(fd, at, to as usize, length);
    fn __pread64_chk(fd: c_int, to: *mut c_void, length: usize, at: i64, _room: usize) -> isize =
        |host, fd, to, length, at, _| host.read(fd, at, to as usize, length);
    fn pwrite(fd: c_int, from: *const c_void, length: usize, at: i64) -> isize =
        |host, fd, from, length, at| host.write(fd, at, from as usize, length);
    fn pwrite64(fd: c_int, from: *const c_void, length: usize, at: i64) -> isize =
        |host, fd, from, length, at| host.write(fd, at, from as usize, length);
}

fn close_number(number: c_int) -> io::Result<c_int> {
    // SAFETY: the program gives the number up, and it is open: the machine found it.
    drop(unsafe { OwnedFd::from_raw_fd(number) });
    Ok(0)
}

/// Transfers at the position of a file, which moves behind the transfer.
fn at_position(
    number: c_int,
    transfer: impl FnOnce(i64) -> Option<io::Result<isize>>,
) -> Option<io::Result<isize>> {
    // SAFETY: the calls borrow the number, and fail if it is not open.
    let fd = unsafe { BorrowedFd::borrow_raw(number.max(0)) };
    let at = lseek(fd, 0, Whence::SeekCur).ok()?;
    let done = transfer(at)?;
    if let Ok(bytes) = done {
        let _ = lseek(fd, at.saturating_add(bytes as i64), Whence::SeekSet);
    }
    Some(done)
}
