//! `fstat`: no file of VFIO is a memfd. Most are character devices. A device that its group opened
//! is an anonymous inode, which has no type.

use std::ffi::{c_int, c_void};

use super::{answered, next};

/// Replaces the forms of `fstat`: before the number they may have an argument.
macro_rules! replaced {
    ($(fn $name:ident($($before:ident: $before_type:ty,)? @fd, @to);)*) => {$(
        /// Replaces the C library's function.
        ///
        /// # Safety
        ///
        /// That of the C library's function.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(
            $($before: $before_type,)? fd: c_int, to: *mut c_void
        ) -> c_int {
            let done =
                next!($name($($before: $before_type,)? fd: c_int, to: *mut c_void) -> c_int, -1);
            if done == 0 && let Some(node) = answered(|host| host.node(fd)) {
                // SAFETY: the C library has just written this struct there.
                unsafe { be_one_of_vfio(to, node) };
            }
            done
        }
    )*};
}

replaced! {
    fn fstat(@fd, @to);
    fn fstat64(@fd, @to);
    fn __fxstat(version: c_int, @fd, @to);
    fn __fxstat64(version: c_int, @fd, @to);
}

/// # Safety
///
/// `to` is a `struct stat`, which has one form on 64-bit machines.
unsafe fn be_one_of_vfio(to: *mut c_void, node: Option<u64>) {
    // SAFETY: the caller's promise.
    if let Some(stat) = unsafe { to.cast::<libc::stat>().as_mut() } {
        stat.st_mode = 0o600 | node.map_or(0, |_| libc::S_IFCHR);
        stat.st_rdev = node.unwrap_or(0);
    }
}
