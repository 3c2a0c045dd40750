//! Retries calls that reset a device.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
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

/// The calls that reset a device and have not returned yet.
struct UnderWay(AtomicU32);

/// Those of this process.
static UNDER_WAY: UnderWay = UnderWay(AtomicU32::new(0));

/// Makes a call that resets a device, and counts it while it runs.
pub(crate) fn counted<T>(call: impl FnOnce() -> T) -> T {
    UNDER_WAY.counted(call)
}

/// Makes a call that resets a device. It is retried for a second while the kernel holds the
/// device's lock: the kernel handles an error of the device, or another reset.
///
/// Newer kernels also lock the bridge above the device (pci_try_reset_function), so that threads
/// which reset devices of one bridge take turns. Retries do not count while another thread of this
/// process resets a device.
pub(crate) fn retry_while_locked<T>(call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    UNDER_WAY.retry_while_locked(call)
}

impl UnderWay {
    fn counted<T>(&self, call: impl FnOnce() -> T) -> T {
        self.0.fetch_add(1, Ordering::Relaxed);
        let result = call();
        self.0.fetch_sub(1, Ordering::Relaxed);
        result
    }

    fn retry_while_locked<T>(&self, mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        let mut retries: u32 = 0;
        while retries < RETRIES {
            match self.counted(&mut call) {
                Err(error) if is_locked(&error) => sleep(PAUSE),
                result => return result,
            }
            retries = retries.saturating_add(u32::from(self.0.load(Ordering::Relaxed) == 0));
        }
        call()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of calls, and the result, if the first `failures` calls fail with `errno`.
    fn calls(under_way: &UnderWay, failures: u32, errno: i32) -> (u32, bool) {
        let mut made = 0;
        let result = under_way.retry_while_locked(|| {
            made += 1;
            if made > failures { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
        });
        (made, result.is_ok())
    }

    #[test]
    fn retries_while_the_lock_is_held_but_not_after_other_errors() {
        let alone = UnderWay(AtomicU32::new(0));
        assert_eq!(calls(&alone, 0, 0), (1, true));
        assert_eq!(calls(&alone, 3, libc::EAGAIN), (4, true));
        assert_eq!(calls(&alone, 2, libc::EINTR), (3, true));
        assert_eq!(calls(&alone, 1, libc::EBUSY), (1, false));
        assert_eq!(calls(&alone, u32::MAX, libc::EAGAIN), (101, false));
    }

    #[test]
    fn retries_do_not_count_while_another_thread_resets_a_device() {
        let other = UnderWay(AtomicU32::new(1));
        assert_eq!(calls(&other, RETRIES + 1, libc::EAGAIN), (RETRIES + 2, true));
    }
}
