//! Converts errors of kvm-ioctls to `io::Error`.

use std::io;

pub(super) fn errno(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}
