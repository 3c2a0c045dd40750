//! Stdin to the guest, with one escape: Ctrl-A.

use std::io::stdin;

use devices::SerialError;

/// Ctrl-A.
const ESCAPE: u8 = 0x01;
/// As many bytes as a UART's receive FIFO takes.
const CHUNK: usize = 64;

/// What reading stdin came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// All that was read is with the guest.
    Taken,
    /// The guest has taken part: read no more until it wants the rest.
    Full,
    /// There will be no more.
    End,
    /// The user typed Ctrl-A x.
    Quit,
}

/// Bytes on their way from stdin to the serial port.
#[derive(Default)]
pub(crate) struct Input {
    waiting: Vec<u8>,
    escaped: bool,
    escapes: bool,
}

impl Input {
    /// Nothing yet; Ctrl-A means something if `escapes`, as it should from a terminal only.
    pub(crate) fn new(escapes: bool) -> Self {
        Self { escapes, ..Self::default() }
    }

    /// Reads once and gives the bytes to `receive`, which says how many it took.
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
            // A closed terminal (EIO) or no stdin at all (EBADF).
            Err(_) => Ok(Read::End),
        }
    }

    /// Gives what waits to `receive`.
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
    fn ctrl_a_x_quits_even_in_two_reads() {
        let mut input = Input::new(true);
        assert_eq!(taken(&mut input, b"ab\x01", 9), (Read::Taken, b"ab".to_vec()));
        assert_eq!(taken(&mut input, b"x", 9).0, Read::Quit);
    }

    #[test]
    fn ctrl_a_twice_is_one_ctrl_a() {
        let mut input = Input::new(true);
        assert_eq!(taken(&mut input, b"\x01\x01x", 9), (Read::Taken, b"\x01x".to_vec()));
    }

    #[test]
    fn without_a_terminal_nothing_escapes() {
        let mut input = Input::default();
        assert_eq!(taken(&mut input, b"\x01x", 9), (Read::Taken, b"\x01x".to_vec()));
    }

    #[test]
    fn what_the_guest_does_not_take_waits_in_order() {
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
