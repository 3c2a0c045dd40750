//! Errors as the kernel reports them.

use std::io;

pub(crate) fn errno(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}
