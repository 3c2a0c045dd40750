//! The files that a guest boots from. The VMM opens each once and keeps it for later boots, because
//! a running VMM may not open files. A pipe is read to its end when it is opened, since it cannot
//! be read twice.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, IsTerminal, Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Once;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::passed_fds::PassedFds;
use super::signals;
use crate::config::{Config, Source};
use crate::error::Error;

/// The boot files.
pub(crate) struct Files {
    pub(crate) kernel: Opened,
    pub(crate) initrd: Option<Opened>,
}

impl Files {
    /// Opens the files of `config`, or takes them from the passed file descriptors.
    pub(crate) fn open(config: &Config, passed: &mut PassedFds) -> Result<Self, Error> {
        let most = config.memory.bytes();
        let kernel = Opened::new("kernel", &config.kernel, passed, most)?;
        let initrd = config.initrd.as_ref();
        let initrd = initrd.map(|source| Opened::new("initrd", source, passed, most));
        Ok(Self { kernel, initrd: initrd.transpose()? })
    }
}

/// An open boot file.
#[derive(Debug)]
pub struct Opened {
    what: &'static str,
    path: PathBuf,
    file: File,
    warned: Once,
}

impl Opened {
    /// Opens the file at `path`; errors call the file `what`. A pipe is read into memory, if it has
    /// at most `most` bytes.
    ///
    /// # Errors
    ///
    /// [`Error::File`] with the errno; [`Error::BootFile`] if the file is empty, or cannot be read
    /// at any offset and is no pipe.
    pub fn open(what: &'static str, path: &Path, most: u64) -> Result<Self, Error> {
        let path = path.to_owned();
        // Without O_NONBLOCK this would wait for the writer of a FIFO.
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
            Ok(file) => Self { what, path, file, warned: Once::new() }.readable(most),
            Err(source) => Err(open_error(what, path, source)),
        }
    }

    fn new(
        what: &'static str,
        source: &Source,
        passed: &mut PassedFds,
        most: u64,
    ) -> Result<Self, Error> {
        match source {
            Source::Path(path) => Self::open(what, path, most),
            Source::Fd(fd) => {
                let (path, file) = (source.to_string().into(), passed.remove(*fd)?);
                Self { what, path, file, warned: Once::new() }.readable(most)
            }
        }
    }

    /// The path, or `fd=N`, for errors.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file, for positioned reads.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// The file, rewound for sequential reads.
    pub(crate) fn rewound(&self) -> Result<&File, Error> {
        (&self.file).rewind().map_err(|source| self.failed(source))?;
        Ok(&self.file)
    }

    /// The size in bytes.
    pub(crate) fn size(&self) -> Result<u64, Error> {
        let metadata = self.file.metadata();
        metadata.map(|file| file.len()).map_err(|source| self.failed(source))
    }

    /// An I/O error of this file.
    pub(crate) fn failed(&self, source: io::Error) -> Error {
        let (what, path) = (self.what, self.path.clone());
        Error::File { what, path, source }
    }

    /// An error of this file that has no errno.
    pub(crate) fn refused(&self, why: impl Into<String>) -> Error {
        let (what, path, why) = (self.what, self.path.clone(), why.into());
        Error::BootFile { what, path, why }
    }

    /// Logs a warning, once: a guest that reboots boots from the same file.
    pub(crate) fn warn_once(&self, why: &str) {
        self.warned.call_once(|| log::warn!("{} {}: {why}", self.what, self.path.display()));
    }

    /// The error if the file has fewer than `size` bytes now: something writes it.
    pub(crate) fn shrunk(&self, size: u64) -> Option<Error> {
        let now = self.size().ok().filter(|now| *now < size)?;
        Some(self.refused(format!(
            "it became shorter while it was read: it had {size} bytes, and has {now} now\n  \
             start the VMM when the file is complete"
        )))
    }

    /// The file if it can be read at any offset, or a copy in memory if it is a pipe.
    fn readable(self, most: u64) -> Result<Self, Error> {
        let metadata = self.file.metadata().map_err(|source| self.failed(source))?;
        match is_stream(&metadata, || self.file.is_terminal()) {
            Ok(false) => Ok(self),
            Ok(true) => self.copied(most),
            Err(why) => Err(self.refused(why)),
        }
    }

    /// A copy in memory, of a file that is read to its end.
    fn copied(mut self, most: u64) -> Result<Self, Error> {
        // The signals that end the VMM are blocked, and nothing reads them yet.
        let read = signals::interruptible(|| {
            wait(&self.file)?;
            let mut copy = File::from(memfd_create(c"boot-file", MFdFlags::MFD_CLOEXEC)?);
            let size = io::copy(&mut (&self.file).take(most.saturating_add(1)), &mut copy)?;
            Ok((copy, size))
        });
        let (copy, size) = read.map_err(|source| self.failed(source))?;
        match size {
            0 => Err(self.refused(EMPTY)),
            size if size > most => Err(self.refused(format!(
                "it has more than {} MiB, which is all of the guest's RAM\n  \
                 give the guest more RAM with --memory, or a smaller file",
                most >> 20
            ))),
            _ => {
                self.file = copy;
                Ok(self)
            }
        }
    }
}

const EMPTY: &str = "it is empty\n  copy or build it again: perhaps the disk was full; a pipe can \
                     be read only once, and only if its writer succeeds";

/// Waits until a pipe has data, or its writer has ended, and lets reads wait from now on. A FIFO
/// may have no writer yet.
fn wait(pipe: &File) -> io::Result<()> {
    let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::NONE)?;
    let flags = OFlag::from_bits_retain(fcntl(pipe, FcntlArg::F_GETFL)?);
    if flags.contains(OFlag::O_NONBLOCK) {
        fcntl(pipe, FcntlArg::F_SETFL(flags.difference(OFlag::O_NONBLOCK)))?;
    }
    Ok(())
}

/// Whether a file is read to its end once, because it has no size: a pipe, or a file of `/proc`.
///
/// # Errors
///
/// Why the file is not a boot file, with the remedy.
fn is_stream(file: &Metadata, is_terminal: impl FnOnce() -> bool) -> Result<bool, &'static str> {
    let kind = file.file_type();
    if kind.is_file() {
        return Ok(file.size() == 0);
    }
    match () {
        () if kind.is_fifo() => Ok(true),
        () if kind.is_dir() => Err("it is a folder\n  give a file in it; 'ls' lists them"),
        () if kind.is_socket() => Err(SOCKET),
        () if kind.is_char_device() && is_terminal() => {
            Err("it is a terminal\n  give a file or a pipe")
        }
        () if kind.is_char_device() => {
            Err("it is a character device, which may have no end\n  give a file or a pipe")
        }
        () if kind.is_block_device() => {
            Err("it is a block device, not a file on it\n  give a file, or a pipe that has only \
             its part: <(head -c SIZE DEVICE)")
        }
        () => Err("it is neither a file nor a pipe\n  give a file or a pipe"),
    }
}

const SOCKET: &str = "it is a socket\n  give a file or a pipe";

/// Sockets cannot be opened (ENXIO).
fn open_error(what: &'static str, path: PathBuf, source: io::Error) -> Error {
    let is_socket = |path: &Path| path.metadata().is_ok_and(|file| file.file_type().is_socket());
    match source.raw_os_error() {
        Some(libc::ENXIO) if is_socket(&path) => Error::BootFile { what, path, why: SOCKET.into() },
        _ => Error::File { what, path, source },
    }
}

#[cfg(test)]
mod tests;
