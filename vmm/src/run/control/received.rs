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
