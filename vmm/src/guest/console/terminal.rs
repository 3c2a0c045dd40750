//! The terminal in raw mode, and back in its own mode on every way out.

use std::io::stdin;
use std::sync::{Mutex, Once, PoisonError};

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, tcgetpgrp};

/// The terminal's own mode while it is raw. Global, since a panic hook has nothing else to find it
/// by.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);
static HOOK: Once = Once::new();

/// Raw mode of the terminal on stdin; its own mode comes back when this is dropped, and on a panic.
///
/// Does nothing where stdin is no terminal, or one whose foreground is another job's.
pub(crate) struct RawTerminal(());

impl RawTerminal {
    /// Makes the terminal raw: every key goes to the guest, Ctrl-C too.
    pub(crate) fn enter() -> Self {
        // A background job that changes the terminal's mode is stopped by the kernel (SIGTTOU).
        let is_foreground = tcgetpgrp(stdin()).is_ok_and(|group| group == getpgrp());
        let own = tcgetattr(stdin()).ok().filter(|_| is_foreground);
        if let Some(own) = own {
            HOOK.call_once(restore_on_panic);
            let mut raw = own.clone();
            cfmakeraw(&mut raw);
            // stdout is the same terminal as a rule, and the messages of this process end in a mere
            // newline.
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
    // The terminal may be gone (a closed window, SIGHUP): then there is no mode to set.
    let _ = tcsetattr(stdin(), SetArg::TCSANOW, mode);
}

/// With `panic = "abort"` nothing is dropped: the hook is the only one who still runs.
fn restore_on_panic() {
    let next = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        restore();
        next(info);
    }));
}
