//! Calls with a path: those of the machine lead into its folder.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::os::unix::ffi::OsStrExt as _;

use super::{answered, next, path, value_or};

/// The path in the machine's folder, if a path of the program belongs to it.
///
/// # Safety
///
/// That of [`path`].
unsafe fn in_machine(name: *const c_char) -> Option<CString> {
    // SAFETY: the caller's promise.
    let path = unsafe { path(name) };
    answered(|host| CString::new(host.inside(path?)?.as_os_str().as_bytes()).ok())
}

/// Replaces a function of which one argument is a path: the C library gets the path in the
/// machine's folder.
macro_rules! led {
    ($(fn $name:ident(
        $($before:ident: $before_type:ty,)* @path $(, $after:ident: $after_type:ty)*
    ) -> $result:ty, $failed:expr;)*) => {$(
        /// Replaces the C library's function.
        ///
        /// # Safety
        ///
        /// That of the C library's function.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(
            $($before: $before_type,)* path: *const c_char $(, $after: $after_type)*
        ) -> $result {
            // SAFETY: the C library's function gets a C string, too.
            let inside = unsafe { in_machine(path) };
            let path = inside.as_ref().map_or(path, |inside| inside.as_ptr());
            next!($name(
                $($before: $before_type,)* path: *const c_char $(, $after: $after_type)*
            ) -> $result, $failed)
        }
    )*};
}

/// Replaces a function that opens a path: a device node of VFIO is opened in the model.
macro_rules! opened {
    ($(fn $name:ident($($directory:ident,)? @path, flags $(, $mode:ident)?);)*) => {$(
        /// Replaces the C library's function. The C library takes the mode, if there is one, from
        /// where a fixed argument would be.
        ///
        /// # Safety
        ///
        /// That of the C library's function.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(
            $($directory: c_int,)? path: *const c_char, flags: c_int $(, $mode: c_uint)?
        ) -> c_int {
            // SAFETY: the C library's function gets a C string, too.
            let named = unsafe { super::path(path) };
            if let Some(result) = answered(|host| host.open(named?, flags)) {
                return value_or(-1, result);
            }
            // SAFETY: as above.
            let inside = unsafe { in_machine(path) };
            let path = inside.as_ref().map_or(path, |inside| inside.as_ptr());
            next!($name(
                $($directory: c_int,)? path: *const c_char, flags: c_int $(, $mode: c_uint)?
            ) -> c_int, -1)
        }
    )*};
}

opened! {
    fn open(@path, flags, mode);
    fn open64(@path, flags, mode);
    fn openat(directory, @path, flags, mode);
    fn openat64(directory, @path, flags, mode);
    fn __open_2(@path, flags);
    fn __open64_2(@path, flags);
    fn __openat_2(directory, @path, flags);
    fn __openat64_2(directory, @path, flags);
}

led! {
    fn fopen(@path, mode: *const c_char) -> *mut c_void, std::ptr::null_mut();
    fn fopen64(@path, mode: *const c_char) -> *mut c_void, std::ptr::null_mut();
    fn opendir(@path) -> *mut c_void, std::ptr::null_mut();
    fn scandir(
        @path, names: *mut c_void, filter: *const c_void, compare: *const c_void
    ) -> c_int, -1;
    fn access(@path, mode: c_int) -> c_int, -1;
    fn faccessat(directory: c_int, @path, mode: c_int, flags: c_int) -> c_int, -1;
    fn readlink(@path, buffer: *mut c_char, size: usize) -> isize, -1;
    fn __readlink_chk(@path, buffer: *mut c_char, size: usize, has: usize) -> isize, -1;
    fn readlinkat(directory: c_int, @path, buffer: *mut c_char, size: usize) -> isize, -1;
    fn getxattr(@path, name: *const c_char, to: *mut c_void, size: usize) -> isize, -1;
    fn lgetxattr(@path, name: *const c_char, to: *mut c_void, size: usize) -> isize, -1;
    fn stat(@path, to: *mut c_void) -> c_int, -1;
    fn stat64(@path, to: *mut c_void) -> c_int, -1;
    fn lstat(@path, to: *mut c_void) -> c_int, -1;
    fn lstat64(@path, to: *mut c_void) -> c_int, -1;
    fn fstatat(directory: c_int, @path, to: *mut c_void, flags: c_int) -> c_int, -1;
    fn fstatat64(directory: c_int, @path, to: *mut c_void, flags: c_int) -> c_int, -1;
    fn statx(
        directory: c_int, @path, flags: c_int, mask: c_uint, to: *mut c_void
    ) -> c_int, -1;
    fn __xstat(version: c_int, @path, to: *mut c_void) -> c_int, -1;
    fn __xstat64(version: c_int, @path, to: *mut c_void) -> c_int, -1;
    fn __lxstat(version: c_int, @path, to: *mut c_void) -> c_int, -1;
    fn __lxstat64(version: c_int, @path, to: *mut c_void) -> c_int, -1;
}
