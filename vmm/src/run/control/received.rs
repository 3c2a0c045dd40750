//! A client's bytes, and the file descriptors that come with them.

use std::fs::File;
use std::io::{self, IoSliceMut, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// The kernel passes at most this many descriptors with one message (SCM_MAX_FD).
const MOST_FILES: usize = 253;

/// A stream whose reads fail after the client's timeout. It collects the files of SCM_RIGHTS
/// messages (unix(7)).
pub(super) struct Received<'a> {
    stream: &'a UnixStream,
    begin: Instant,
    patience: Duration,
    files: Vec<File>,
}

impl<'a> Received<'a> {
    /// Reads from `stream` for at most `patience` from now on.
    pub(super) fn new(stream: &'a UnixStream, patience: Duration) -> Self {
        Self { stream, begin: Instant::now(), patience, files: Vec::new() }
    }

    /// The files, in the order in which they came.
    pub(super) fn into_files(self) -> Vec<File> {
        self.files
    }
}

impl Read for Received<'_> {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        let left = self.patience.saturating_sub(self.begin.elapsed());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        let mut space = cmsg_space!([RawFd; MOST_FILES]);
        let mut data = [IoSliceMut::new(data)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(self.stream.as_raw_fd(), &mut data, Some(&mut space), flags)?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = control {
                // SAFETY: the kernel made these descriptors for this process with this message, and
                // nothing else has seen their numbers.
                let own = |fd| unsafe { OwnedFd::from_raw_fd(fd) };
                self.files.extend(fds.into_iter().map(|fd| File::from(own(fd))));
            }
        }
        Ok(message.bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Seek, Write};

    use nix::sys::socket::{ControlMessage, sendmsg};

    use super::*;

    fn file(content: &str) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content.as_bytes()).unwrap();
        file.rewind().unwrap();
        file
    }

    fn send(stream: &UnixStream, text: &str, files: &[File]) {
        let fds: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let (bytes, flags) = ([IoSlice::new(text.as_bytes())], MsgFlags::empty());
        sendmsg::<()>(stream.as_raw_fd(), &bytes, &rights, flags, None).unwrap();
    }

    #[test]
    fn collects_the_files_of_all_messages_in_order() {
        let (client, server) = UnixStream::pair().unwrap();
        let files = ["a", "b", "c"].map(file);
        send(&client, "one ", &files[..1]);
        send(&client, "two", &files[1..]);
        drop((client, files));
        let mut received = Received::new(&server, Duration::from_secs(5));
        let mut text = String::new();
        received.read_to_string(&mut text).unwrap();
        assert_eq!(text, "one two");
        let contents = received.into_files().into_iter().map(|mut file| {
            let mut content = String::new();
            file.read_to_string(&mut content).unwrap();
            content
        });
        assert_eq!(contents.collect::<Vec<_>>(), ["a", "b", "c"]);
    }

    #[test]
    fn files_that_nobody_takes_are_closed() {
        let (client, server) = UnixStream::pair().unwrap();
        let (read, write) = nix::unistd::pipe().unwrap();
        send(&client, "x", &[File::from(write)]);
        let mut received = Received::new(&server, Duration::from_secs(5));
        assert_eq!(received.read(&mut [0; 8]).unwrap(), 1);
        drop(received);
        assert_eq!(File::from(read).read(&mut [0; 8]).unwrap(), 0, "the end of the pipe");
    }

    #[test]
    fn a_client_that_sends_nothing_is_given_up() {
        let (_client, server) = UnixStream::pair().unwrap();
        let mut received = Received::new(&server, Duration::from_millis(20));
        let begin = Instant::now();
        assert!(received.read(&mut [0; 8]).is_err());
        let error = received.read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begin.elapsed() < Duration::from_secs(5));
    }
}
