//! `realpath`: its result is a path as the program knows it.

use std::ffi::{CStr, CString, c_char};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr;

use super::{answered, next, path, value_or};

/// Resolves a path of the machine. `None`: it is not of the machine.
fn resolve(name: &Path) -> Option<std::io::Result<CString>> {
    answered(|host| {
        let inside = host.inside(name)?;
        let outside = inside.canonicalize().map(|resolved| host.outside(&resolved));
        Some(outside.and_then(|path| Ok(CString::new(path.as_os_str().as_bytes())?)))
    })
}

/// Copies a path to where the program wants it, or into new memory.
///
/// # Safety
///
/// `to` is null or has room for `PATH_MAX` bytes.
unsafe fn give(resolved: &CStr, to: *mut c_char) -> *mut c_char {
    if to.is_null() {
        // SAFETY: it is a C string, and the program frees the copy.
        return unsafe { libc::strdup(resolved.as_ptr()) };
    }
    // SAFETY: a path that exists has fewer bytes than PATH_MAX, and the caller has that room.
    unsafe { libc::strcpy(to, resolved.as_ptr()) }
}

/// Replaces the C library's function.
///
/// # Safety
///
/// That of the C library's function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn realpath(name: *const c_char, to: *mut c_char) -> *mut c_char {
    // SAFETY: the C library's function gets a C string, too.
    match unsafe { path(name) }.and_then(resolve) {
        Some(Ok(resolved)) => {
            // SAFETY: the program's promise.
            unsafe { give(&resolved, to) }
        }
        Some(Err(error)) => value_or(ptr::null_mut(), Err(error)),
        None => {
            next!(realpath(name: *const c_char, to: *mut c_char) -> *mut c_char, ptr::null_mut())
        }
    }
}

/// Replaces the C library's function, which also gets the size of the buffer.
///
/// # Safety
///
/// That of the C library's function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __realpath_chk(
    name: *const c_char,
    to: *mut c_char,
    _size: usize,
) -> *mut c_char {
    // SAFETY: the program's promise. The size is at least PATH_MAX, or the C library would abort.
    unsafe { realpath(name, to) }
}

/// Replaces the C library's function.
///
/// # Safety
///
/// That of the C library's function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn canonicalize_file_name(name: *const c_char) -> *mut c_char {
    // SAFETY: the program's promise.
    unsafe { realpath(name, ptr::null_mut()) }
}
