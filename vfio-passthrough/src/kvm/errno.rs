//! Errors of kvm-ioctls as those of the host traits.

use std::io;

pub(super) fn errno(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}
