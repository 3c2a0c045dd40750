//! Files that the process that starts the VMM has opened for it: `fd=N`.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, fcntl};

use crate::config::Config;
use crate::error::Error;

/// 0, 1 and 2 are the console and the messages.
const FIRST: RawFd = 3;

/// The files that no part of the VMM uses yet, by their numbers.
#[derive(Debug, Default)]
pub(crate) struct PassedFds(BTreeMap<RawFd, (&'static str, File)>);

impl PassedFds {
    /// Takes all that `config` names. To be called before the VMM opens any file, since that one
    /// would get a free number.
    ///
    /// # Errors
    ///
    /// [`Error::PassedFd`]: nothing is open by a number, or it is given twice.
    pub(crate) fn take(config: &Config) -> Result<Self, Error> {
        let files = [
            ("--kernel", config.kernel.fd()),
            ("--initrd", config.initrd.as_ref().and_then(|source| source.fd())),
            ("--kvm", config.kvm.fd()),
        ];
        let groups = config.vfio.iter().map(|device| ("--vfio", device.group));
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
                "this number is given twice: each file is one option's",
            ));
        }
        // SAFETY: for one call, which says whether anything is open by this number.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        if fd < FIRST || fcntl(borrowed, FcntlArg::F_GETFD).is_err() {
            let why = "no file was passed by this number (EBADF)\n  a shell passes one so: vmm --kernel fd=3 3<bzImage";
            return Err(Error::passed_fd(option, fd, why));
        }
        // SAFETY: it is open, whoever started this process has passed it for this option, and it is
        // taken once.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        self.0.insert(fd, (option, file.into()));
        Ok(())
    }

    /// A file that is looked at.
    pub(crate) fn look(&self, fd: RawFd) -> Option<&File> {
        self.0.get(&fd).map(|(_, file)| file)
    }

    /// A file that is used from now on, once.
    ///
    /// # Errors
    ///
    /// [`Error::PassedFd`] where it was used already.
    pub(crate) fn remove(&mut self, fd: RawFd) -> Result<File, Error> {
        let file = self.0.remove(&fd).map(|(_, file)| file);
        file.ok_or_else(|| Error::passed_fd("fd", fd, "it is in use already"))
    }
}
