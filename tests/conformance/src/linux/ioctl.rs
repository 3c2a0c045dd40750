//! The system calls.

use std::io;
use std::os::fd::RawFd;

/// The argument of an ioctl.
pub enum Argument<'a> {
    /// A number.
    Number(u64),
    /// A struct, or a string with its zero byte.
    Bytes(&'a mut [u8]),
}

/// An ioctl. Each caller provides a buffer of at least the size that the request and its `argsz`
/// state. A map names memory of the arena, which exists as long as the process, or no memory.
pub fn ioctl(fd: RawFd, request: u32, argument: Argument<'_>) -> io::Result<i32> {
    let argument = match argument {
        Argument::Number(number) => number,
        Argument::Bytes(bytes) => bytes.as_mut_ptr().expose_provenance() as u64,
    };
    // SAFETY: the buffer is large enough, as documented above. No device does DMA, so mapped memory
    // does not change.
    let result = unsafe { libc::ioctl(fd, libc::Ioctl::from(request), argument) };
    check(result)
}

/// An eventfd that does not block.
pub fn eventfd() -> io::Result<RawFd> {
    // SAFETY: the call takes no memory of ours.
    check(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) })
}

/// A memfd of a size.
pub fn memory(size: u64) -> io::Result<RawFd> {
    // SAFETY: the name ends with a zero byte.
    let fd = check(unsafe { libc::memfd_create(c"conformance".as_ptr(), libc::MFD_CLOEXEC) })?;
    let size = libc::off_t::try_from(size).map_err(io::Error::other)?;
    // SAFETY: the call takes no memory of ours.
    check(unsafe { libc::ftruncate(fd, size) }).map(|_| fd)
}

/// The count of an eventfd; 0 without a signal.
pub fn read_eventfd(fd: RawFd) -> io::Result<u64> {
    let mut count = 0_u64;
    // SAFETY: the kernel writes the 8 bytes of `count` at most.
    let read = unsafe { libc::read(fd, std::ptr::from_mut(&mut count).cast(), size_of::<u64>()) };
    match io::Error::last_os_error() {
        _ if read >= 0 => Ok(count),
        error if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        error => Err(error),
    }
}

/// Closes an fd that a check opened.
pub fn close(fd: RawFd) -> io::Result<()> {
    // SAFETY: no value of the program owns this fd.
    check(unsafe { libc::close(fd) }).map(|_| ())
}

fn check(result: i32) -> io::Result<i32> {
    match result {
        0.. => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
