//! Errors as the kernel reports them.

use std::error::Error;
use std::fmt;
use std::io;

pub(crate) fn errno(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

/// The error of a `VFIO_DEVICE_SET_IRQS` for which the host has only this number of vectors. The
/// ioctl returns the number, and nothing was enabled (`vfio_msi_enable`). It is the inner error of
/// an [`io::Error`] of the kind `StorageFull`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FewerVectors(pub u32);

impl fmt::Display for FewerVectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the host has only {} vectors for the device", self.0)
    }
}

impl Error for FewerVectors {}
