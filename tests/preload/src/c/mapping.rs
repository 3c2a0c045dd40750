//! `mmap` and `munmap`.

use std::ffi::{c_int, c_void};
use std::os::fd::AsRawFd as _;

use super::{answered, next, value_or};

/// Replaces the forms of `mmap`, which have the same arguments.
macro_rules! replaced {
    ($($name:ident)*) => {$(
        /// Replaces the C library's function.
        ///
        /// # Safety
        ///
        /// That of the C library's function.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(
            address: *mut c_void,
            length: usize,
            protection: c_int,
            flags: c_int,
            fd: c_int,
            at: i64,
        ) -> *mut c_void {
            let find = || answered(|host| host.mmap(fd, at, length, flags));
            let found = if flags & libc::MAP_ANONYMOUS == 0 { find() } else { None };
            let file = match found {
                Some(Ok(file)) => Some(file),
                Some(Err(error)) => return value_or(libc::MAP_FAILED, Err(error)),
                None => None,
            };
            let flags = if flags & libc::MAP_HUGETLB == 0 { flags } else { small(flags) };
            let fd = file.as_ref().map_or(fd, |file| file.as_raw_fd());
            let mapped = next!($name(
                address: *mut c_void,
                length: usize,
                protection: c_int,
                flags: c_int,
                fd: c_int,
                at: i64
            ) -> *mut c_void, libc::MAP_FAILED);
            if mapped != libc::MAP_FAILED && (file.is_some() || flags & libc::MAP_FIXED != 0) {
                note(mapped, length, file.is_some());
            }
            mapped
        }
    )*};
}

replaced! { mmap mmap64 }

/// The flags without huge pages, if the machine has it so.
fn small(flags: c_int) -> c_int {
    answered(|host| host.map_flags(flags)).unwrap_or(flags)
}

/// Replaces the C library's function.
///
/// # Safety
///
/// That of the C library's function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn munmap(address: *mut c_void, length: usize) -> c_int {
    let done = next!(munmap(address: *mut c_void, length: usize) -> c_int, -1);
    if done == 0 {
        note(address, length, false);
    }
    done
}

/// What is at some addresses decides whether it can be mapped for DMA.
fn note(address: *mut c_void, length: usize, is_device: bool) {
    answered(|host| {
        host.mapped(address as usize, length, is_device);
        Some(())
    });
}
