//! The signals that the main thread reads.

use std::io;
use std::sync::Arc;

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::error::Error;

/// Signals that end the VMM.
const ENDS: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];
/// Pauses the guest.
pub(crate) const PAUSE: Signal = Signal::SIGUSR1;
/// Resumes the guest.
pub(crate) const RESUME: Signal = Signal::SIGUSR2;

/// Blocks the signals that end the VMM, pause the guest or resume it: the main loop reads them. Call this before any other thread starts, because
/// threads inherit the mask.
pub(crate) fn block() -> Result<Arc<SignalFd>, Error> {
    let signals: SigSet = ENDS.into_iter().chain([PAUSE, RESUME]).collect();
    signals.thread_block().map_err(Error::system("blocking signals"))?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map(Arc::new)
        .map_err(Error::system("signalfd"))
}

/// Does `work`, which may wait for long before the main loop runs. A signal that ends the VMM kills
/// the process meanwhile.
pub(crate) fn interruptible<T>(work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let ends: SigSet = ENDS.into_iter().collect();
    let before = ends.thread_swap_mask(SigmaskHow::SIG_UNBLOCK)?;
    let result = work();
    before.thread_set_mask()?;
    result
}
