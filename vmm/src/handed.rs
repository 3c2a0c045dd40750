//! Files that whoever starts the VMM has opened for it: `fd=N`.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, fcntl};

use crate::{Args, Error};

/// 0, 1 and 2 are the console and the messages.
const FIRST: RawFd = 3;

/// Those that nobody uses yet, by their numbers.
#[derive(Debug, Default)]
pub struct Handed(BTreeMap<RawFd, (&'static str, File)>);

impl Handed {
    /// All that `args` name. Before the VMM opens any file: it would have one of these numbers, where that is free.
    ///
    /// # Errors
    ///
    /// [`Error::Handed`]: nothing is open by a number, or it is given twice.
    pub fn take(args: &Args) -> Result<Self, Error> {
        let files = [
            ("--kernel", args.kernel.fd()),
            ("--initrd", args.initrd.as_ref().and_then(|source| source.fd())),
            ("--kvm", args.kvm.fd()),
        ];
        let groups = args.vfio.iter().map(|device| ("--vfio", device.group));
        let mut handed = Self::default();
        for (option, fd) in files.into_iter().chain(groups) {
            if let Some(fd) = fd {
                handed.add(option, fd)?;
            }
        }
        Ok(handed)
    }

    fn add(&mut self, option: &'static str, fd: RawFd) -> Result<(), Error> {
        if self.0.contains_key(&fd) {
            return Err(Error::handed(
                option,
                fd,
                "this number is given twice: each file is one option's",
            ));
        }
        // SAFETY: for one call, which says whether anything is open by this number.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        if fd < FIRST || fcntl(borrowed, FcntlArg::F_GETFD).is_err() {
            let why = "no file was passed by this number (EBADF)\n  a shell passes one so: vmm --kernel fd=3 3<bzImage";
            return Err(Error::handed(option, fd, why));
        }
        // SAFETY: it is open, whoever started this process has passed it for this option, and it is taken once.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        self.0.insert(fd, (option, file.into()));
        Ok(())
    }

    /// A file that is looked at.
    pub fn look(&self, fd: RawFd) -> Option<&File> {
        self.0.get(&fd).map(|(_, file)| file)
    }

    /// A file that is used from now on, once.
    ///
    /// # Errors
    ///
    /// [`Error::Handed`] where it was used already.
    pub fn remove(&mut self, fd: RawFd) -> Result<File, Error> {
        let file = self.0.remove(&fd).map(|(_, file)| file);
        file.ok_or_else(|| Error::handed("fd", fd, "it is in use already"))
    }
}
