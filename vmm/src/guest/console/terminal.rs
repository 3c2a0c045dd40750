//! Raw mode of the terminal, and its restoration on every exit path.

use std::io::stdin;
use std::sync::{Mutex, Once, PoisonError};

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, tcgetpgrp};

/// The terminal's own mode while it is raw. A global, because a panic hook has no other access to
/// it.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);
static HOOK: Once = Once::new();

/// Raw mode of the terminal on stdin. Dropping the value, or a panic, restores the terminal's mode.
///
/// Does nothing if stdin is not a terminal, or if the process is not in the foreground.
pub(crate) struct RawTerminal(());

impl RawTerminal {
    /// Sets raw mode: every key goes to the guest, including Ctrl-C.
    pub(crate) fn enter() -> Self {
        // The kernel stops a background job that changes the terminal's mode (SIGTTOU).
        let is_foreground = || tcgetpgrp(stdin()).is_ok_and(|group| group == getpgrp());
        if let Some(own) = tcgetattr(stdin()).ok().filter(|_| is_foreground()) {
            HOOK.call_once(restore_on_panic);
            let mut raw = own.clone();
            cfmakeraw(&mut raw);
            // stdout usually is the same terminal, and this process ends its messages
            // with a plain newline, so keep the output flags.
            raw.output_flags = own.output_flags;
            *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = Some(own);
            set(&raw);
        }
        Self(())
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    if let Some(own) = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take() {
        set(&own);
    }
}

fn set(mode: &Termios) {
    // Ignore an error: the terminal may be closed (SIGHUP).
    let _ = tcsetattr(stdin(), SetArg::TCSANOW, mode);
}

/// With `panic = "abort"` nothing is dropped; only the hook runs.
fn restore_on_panic() {
    let next = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        restore();
        next(info);
    }));
}
