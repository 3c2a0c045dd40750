//! Reads stdin for the guest and handles the escape key Ctrl-A.

use std::io::stdin;

use devices::SerialError;

/// Ctrl-A.
const ESCAPE: u8 = 0x01;
/// The size of a UART's receive FIFO.
const CHUNK: usize = 64;

/// The result of reading stdin.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// The guest received all bytes.
    Taken,
    /// The guest received only some bytes: stop reading until it drains them.
    Full,
    /// Stdin has ended.
    End,
    /// The user typed Ctrl-A x.
    Quit,
}

/// Bytes between stdin and the serial port.
#[derive(Default)]
pub(crate) struct Input {
    waiting: Vec<u8>,
    escaped: bool,
    escapes: bool,
}

impl Input {
    /// An empty buffer. `escapes` enables Ctrl-A, for terminals only.
    pub(crate) fn new(escapes: bool) -> Self {
        Self { escapes, ..Self::default() }
    }

    /// Reads once and passes the bytes to `receive`, which returns the number of accepted bytes.
    pub(crate) fn read(
        &mut self,
        receive: impl FnMut(&[u8]) -> Result<usize, SerialError>,
    ) -> Result<Read, SerialError> {
        let mut chunk = [0; CHUNK];
        let read = nix::unistd::read(stdin(), &mut chunk);
        match read.map(|length| chunk.get(..length).unwrap_or_default()) {
            Ok([]) => Ok(Read::End),
            Ok(bytes) => self.take(bytes, receive),
            Err(nix::errno::Errno::EINTR | nix::errno::Errno::EAGAIN) => Ok(Read::Taken),
            // The terminal is closed (EIO), or stdin is closed (EBADF).
            Err(_) => Ok(Read::End),
        }
    }

    /// Passes the waiting bytes to `receive`.
    pub(crate) fn resume(
        &mut self,
        mut receive: impl FnMut(&[u8]) -> Result<usize, SerialError>,
    ) -> Result<Read, SerialError> {
        let taken = receive(&self.waiting)?.min(self.waiting.len());
        self.waiting.drain(..taken);
        Ok(if self.waiting.is_empty() { Read::Taken } else { Read::Full })
    }

    fn take(
        &mut self,
        bytes: &[u8],
        receive: impl FnMut(&[u8]) -> Result<usize, SerialError>,
    ) -> Result<Read, SerialError> {
        for byte in bytes {
            match (std::mem::take(&mut self.escaped), *byte) {
                (true, b'x') => return Ok(Read::Quit),
                (false, ESCAPE) if self.escapes => self.escaped = true,
                (_, byte) => self.waiting.push(byte),
            }
        }
        self.resume(receive)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(input: &mut Input, bytes: &[u8], room: usize) -> (Read, Vec<u8>) {
        let mut received = Vec::new();
        let receive = |bytes: &[u8]| {
            let fits = &bytes[..bytes.len().min(room)];
            received.extend_from_slice(fits);
            Ok(fits.len())
        };
        let read = input.take(bytes, receive).unwrap();
        (read, received)
    }

    #[test]
    fn recognizes_ctrl_a_x_across_two_reads() {
        let mut input = Input::new(true);
        assert_eq!(taken(&mut input, b"ab\x01", 9), (Read::Taken, b"ab".to_vec()));
        assert_eq!(taken(&mut input, b"x", 9).0, Read::Quit);
    }

    #[test]
    fn ctrl_a_twice_sends_one_ctrl_a() {
        let mut input = Input::new(true);
        assert_eq!(taken(&mut input, b"\x01\x01x", 9), (Read::Taken, b"\x01x".to_vec()));
    }

    #[test]
    fn without_a_terminal_ctrl_a_is_an_ordinary_byte() {
        let mut input = Input::default();
        assert_eq!(taken(&mut input, b"\x01x", 9), (Read::Taken, b"\x01x".to_vec()));
    }

    #[test]
    fn keeps_bytes_that_the_guest_does_not_accept_in_order() {
        let mut input = Input::default();
        assert_eq!(taken(&mut input, b"abcd", 3), (Read::Full, b"abc".to_vec()));
        let mut rest = Vec::new();
        let read = input.resume(|bytes| {
            rest.extend_from_slice(bytes);
            Ok(bytes.len())
        });
        assert_eq!((read.unwrap(), rest), (Read::Taken, b"d".to_vec()));
    }
}
