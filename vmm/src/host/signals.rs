//! The signals that the main thread reads.

use std::sync::Arc;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::error::Error;

/// Signals that end the VMM, pause the guest or resume it. Every thread blocks them; the main loop
/// reads them.
const SIGNALS: [Signal; 5] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, PAUSE, RESUME];
/// Pauses the guest.
pub(crate) const PAUSE: Signal = Signal::SIGUSR1;
/// Resumes the guest.
pub(crate) const RESUME: Signal = Signal::SIGUSR2;

/// Blocks the signals that the main loop reads. Call this before any other thread starts, because
/// threads inherit the mask.
pub(crate) fn block() -> Result<Arc<SignalFd>, Error> {
    let signals: SigSet = SIGNALS.into_iter().collect();
    signals.thread_block().map_err(Error::system("blocking signals"))?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map(Arc::new)
        .map_err(Error::system("signalfd"))
}
