//! Inherited file descriptors that the parent process opened for the VMM: `fd=N`.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, fcntl};

use crate::config::Config;
use crate::error::Error;

/// 0, 1 and 2 are the console and the messages.
const FIRST: RawFd = 3;

/// Passed files that no part of the VMM uses yet, by descriptor.
#[derive(Debug, Default)]
pub(crate) struct PassedFds(BTreeMap<RawFd, (&'static str, File)>);

impl PassedFds {
    /// Takes all descriptors of `config`. Call this before the VMM opens any file: a new file
    /// could get the number of a missing descriptor.
    ///
    /// # Errors
    ///
    /// [`Error::PassedFd`] if a descriptor is not open, or occurs twice.
    pub(crate) fn take(config: &Config) -> Result<Self, Error> {
        let files = [
            ("--kernel", config.kernel.fd()),
            ("--initrd", config.initrd.as_ref().and_then(|source| source.fd())),
            ("--kvm", config.kvm.fd()),
            ("--container", config.container),
            ("--iommufd", config.iommufd),
        ];
        let groups = config.vfio.iter().map(|device| ("--vfio", device.file));
        let mut passed = Self::default();
        for (option, fd) in files.into_iter().chain(groups) {
            if let Some(fd) = fd {
                passed.add(option, fd)?;
            }
        }
        Ok(passed)
    }

    fn add(&mut self, option: &'static str, fd: RawFd) -> Result<(), Error> {
        if self.0.contains_key(&fd) {
            return Err(Error::passed_fd(
                option,
                fd,
                "this descriptor is given twice: each option needs a descriptor of its own",
            ));
        }
        // SAFETY: the borrow lasts for one fcntl call, which fails if the descriptor is not open.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        if fd < FIRST || fcntl(borrowed, FcntlArg::F_GETFD).is_err() {
            let why = "no such file descriptor was passed (EBADF)\n  \
             pass one from a shell with: vmm --kernel fd=3 3<bzImage";
            return Err(Error::passed_fd(option, fd, why));
        }
        // SAFETY: the descriptor is open, the parent process passed it for this option, and
        // `contains_key` above ensures that it is taken once.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        self.0.insert(fd, (option, file.into()));
        Ok(())
    }

    /// A file, for inspection.
    pub(crate) fn get(&self, fd: RawFd) -> Option<&File> {
        self.0.get(&fd).map(|(_, file)| file)
    }

    /// Takes a file for use.
    ///
    /// # Errors
    ///
    /// [`Error::PassedFd`] if the file was taken before.
    pub(crate) fn remove(&mut self, fd: RawFd) -> Result<File, Error> {
        let file = self.0.remove(&fd).map(|(_, file)| file);
        file.ok_or_else(|| Error::passed_fd("fd", fd, "the descriptor is already in use"))
    }
}
