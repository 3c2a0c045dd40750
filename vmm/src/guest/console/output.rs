//! Writes the guest's output to stdout, line by line.
//!
//! A UART transmits single bytes, and a system call for each byte would cost more than the exits.
//! So this module writes a line when the line ends; the main thread writes an unfinished line (a
//! prompt, an echo) a moment later.

use std::io::{self, Write, stdout};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::error::Error;

/// The maximum length of a buffered line; longer lines are written in parts.
const LONGEST: usize = 1024;

#[derive(Default)]
struct Line {
    bytes: Vec<u8>,
    /// Whether the main thread will write the line.
    is_watched: bool,
}

/// The unwritten line, shared with the main thread.
pub(crate) struct Pending {
    line: Mutex<Line>,
    signal: EventFd,
}

impl Pending {
    /// An empty line.
    pub(crate) fn new() -> Result<Arc<Self>, Error> {
        let signal = EventFd::new(EFD_NONBLOCK).map_err(Error::system("eventfd"))?;
        Ok(Arc::new(Self { line: Mutex::default(), signal }))
    }

    /// Signals that a new line has begun. The main thread then calls [`Pending::write_unfinished`]
    /// until it returns `false`.
    pub(crate) fn signal(&self) -> &EventFd {
        &self.signal
    }

    /// Writes an unfinished line. Returns `false` if there was none: the main thread can then
    /// wait for the next signal.
    pub(crate) fn write_unfinished(&self) -> bool {
        let mut line = self.lock();
        line.is_watched = !line.bytes.is_empty();
        write_out(&mut line.bytes);
        line.is_watched
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, bytes: &[u8]) {
        let mut line = self.lock();
        line.bytes.extend_from_slice(bytes);
        if bytes.contains(&b'\n') || line.bytes.len() >= LONGEST {
            write_out(&mut line.bytes);
        } else if !std::mem::replace(&mut line.is_watched, true) {
            // An error is harmless: a full counter already wakes the reader.
            let _ = self.signal.write(1);
        }
    }
}

/// Writes to stdout. If stdout is closed, drops the output and lets the guest continue.
fn write_out(bytes: &mut Vec<u8>) {
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        match nix::unistd::write(stdout(), rest) {
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(nix::errno::Errno::EINTR) => {}
            Err(_) => break,
        }
    }
    bytes.clear();
}

/// The writer of the serial port.
pub(crate) struct Output(pub Arc<Pending>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.push(bytes);
        Ok(bytes.len())
    }

    /// The UART flushes after each byte; ignore that, because the line buffer exists to avoid it.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.0.write_unfinished();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_byte_of_a_line_signals_and_the_others_do_not() {
        let pending = Pending::new().unwrap();
        pending.push(b"$");
        assert!(pending.signal().read().is_ok());
        pending.push(b" ");
        assert!(pending.signal().read().is_err());
        assert_eq!(pending.lock().bytes, b"$ ");
    }

    #[test]
    fn writing_ends_when_nothing_came_and_then_bytes_signal_again() {
        let pending = Pending::new().unwrap();
        pending.push(b" ");
        assert!(pending.write_unfinished());
        assert!(!pending.write_unfinished());
        pending.signal().read().unwrap();
        pending.push(b" ");
        assert!(pending.signal().read().is_ok());
    }

    #[test]
    fn a_line_that_ends_is_not_kept() {
        let pending = Pending::new().unwrap();
        pending.push(b"\n");
        assert!(pending.lock().bytes.is_empty() && pending.signal().read().is_err());
    }
}
