//! Retries calls that reset a device.

use std::io;
use std::thread::sleep;
use std::time::Duration;

/// Retries: 100 x 10 ms.
const RETRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(10);

/// Whether a call failed because the kernel holds the device's lock (pci_try_reset_function), or
/// because of a signal.
pub(crate) fn is_locked(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Makes a call that resets a device. It is retried for a second while the kernel holds the
/// device's lock: the kernel handles an error of the device, or another reset.
pub(crate) fn retry_while_locked<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..RETRIES {
        match call() {
            Err(error) if is_locked(&error) => sleep(PAUSE),
            result => return result,
        }
    }
    call()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of calls, and the result, if the first `failures` calls fail with `errno`.
    fn calls(failures: u32, errno: i32) -> (u32, bool) {
        let mut made = 0;
        let result = retry_while_locked(|| {
            made += 1;
            if made > failures { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
        });
        (made, result.is_ok())
    }

    #[test]
    fn retries_while_the_lock_is_held_but_not_after_other_errors() {
        assert_eq!(calls(0, 0), (1, true));
        assert_eq!(calls(3, libc::EAGAIN), (4, true));
        assert_eq!(calls(2, libc::EINTR), (3, true));
        assert_eq!(calls(1, libc::EBUSY), (1, false));
        assert_eq!(calls(u32::MAX, libc::EAGAIN), (101, false));
    }
}
