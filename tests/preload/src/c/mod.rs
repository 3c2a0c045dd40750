//! The functions of the C library that this library replaces.

mod files;
mod mapping;
mod resolved;
mod status;
mod with_paths;

use std::cell::Cell;
use std::ffi::{CStr, OsStr, c_char, c_void};
use std::io;
use std::marker::PhantomData;
use std::mem;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use nix::errno::Errno;

thread_local! {
    /// This thread answers a call. The calls that it makes meanwhile are its own, and not the
    /// program's.
    static ANSWERS: Cell<bool> = const { Cell::new(false) };
}

/// Answers a call of the program. `None` if it is a call of this library, or not for the machine.
fn answered<T>(answer: impl FnOnce(&'static crate::host::Host) -> Option<T>) -> Option<T> {
    if ANSWERS.replace(true) {
        return None;
    }
    let answer = crate::host::host().and_then(answer);
    ANSWERS.set(false);
    answer
}

/// The value of a result, with its error in `errno`.
fn value_or<T>(failed: T, result: io::Result<T>) -> T {
    result.unwrap_or_else(|error| {
        let number = error.raw_os_error().unwrap_or(libc::EIO);
        Errno::from_raw(number).set();
        failed
    })
}

/// A path of the program.
///
/// # Safety
///
/// It is null, or a C string that stays as it is while the call lasts.
unsafe fn path<'a>(path: *const c_char) -> Option<&'a Path> {
    if path.is_null() {
        return None;
    }
    // SAFETY: the caller's promise, and it is not null.
    let path = unsafe { CStr::from_ptr(path) };
    Some(Path::new(OsStr::from_bytes(path.to_bytes())))
}

/// A function of the library behind this one, which is the C library.
struct Next<F> {
    name: &'static CStr,
    found: AtomicPtr<c_void>,
    kind: PhantomData<F>,
}

impl<F: Copy> Next<F> {
    /// # Safety
    ///
    /// `F` is the type of the C function `name`, a function pointer.
    const unsafe fn new(name: &'static CStr) -> Self {
        Self { name, found: AtomicPtr::new(ptr::null_mut()), kind: PhantomData }
    }

    /// The function; `None`, with `ENOSYS`, if the C library has none of this name.
    fn get(&self) -> Option<F> {
        let mut found = self.found.load(Ordering::Relaxed);
        if found.is_null() {
            // SAFETY: the name is a C string.
            found = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
            self.found.store(found, Ordering::Relaxed);
        }
        if found.is_null() {
            Errno::ENOSYS.set();
            return None;
        }
        // SAFETY: `new` has the promise that it is a function of this type, and a function pointer
        // has the size of any pointer.
        Some(unsafe { mem::transmute_copy(&found) })
    }
}

/// Calls the function of the same name behind this library.
macro_rules! next {
    ($name:ident($($argument:ident: $type:ty),*) -> $result:ty, $failed:expr) => {{
        use std::ffi::CStr;
        type Function = unsafe extern "C" fn($($type),*) -> $result;
        const BYTES: &[u8] = concat!(stringify!($name), "\0").as_bytes();
        const NAME: &CStr = match CStr::from_bytes_with_nul(BYTES) {
            Ok(name) => name,
            Err(_) => c"",
        };
        // SAFETY: the type is that of the function which has the name.
        static NEXT: crate::c::Next<Function> = unsafe { crate::c::Next::new(NAME) };
        match NEXT.get() {
            // SAFETY: the arguments are the program's, or paths in their place.
            Some(next) => unsafe { next($($argument),*) },
            None => $failed,
        }
    }};
}

use next;
