//! The program's files of VFIO: memfds, each with its file in the model.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;
use vfio_model::Fd;

/// A file, whatever its number: the device and the inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Inode(u64, u64);

/// An open file.
#[derive(Clone, Copy, Debug)]
struct Open {
    fd: Fd,
    /// The number of the device node that opened it; `None` for what an ioctl opened.
    node: Option<u64>,
}

/// The files that are open.
#[derive(Debug, Default)]
pub struct OpenFiles(Mutex<BTreeMap<Inode, Open>>);

impl OpenFiles {
    fn files(&self) -> MutexGuard<'_, BTreeMap<Inode, Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a file for one of the model, which a node may have opened.
    pub fn add(&self, fd: Fd, node: Option<u64>, close_on_exec: bool) -> io::Result<OwnedFd> {
        let file = memfd_create(c"vfio", MFdFlags::MFD_CLOEXEC)?;
        let flags = if close_on_exec { FdFlag::FD_CLOEXEC } else { FdFlag::empty() };
        fcntl(&file, FcntlArg::F_SETFD(flags))?;
        if let Some(inode) = inode_of(file.as_raw_fd()) {
            self.files().insert(inode, Open { fd, node });
        }
        Ok(file)
    }

    /// The file with this number, and its file in the model.
    pub fn find(&self, number: i32) -> Option<(Inode, Fd)> {
        if self.files().is_empty() {
            return None;
        }
        let inode = inode_of(number)?;
        Some((inode, self.files().get(&inode)?.fd))
    }

    /// Whether a file is one of VFIO, and the number of the device node that opened it.
    pub fn node(&self, number: i32) -> Option<Option<u64>> {
        let (inode, _) = self.find(number)?;
        Some(self.files().get(&inode)?.node)
    }

    /// Removes a file if no number of the process has it any more.
    pub fn remove_unused(&self, inode: Inode) -> Option<Fd> {
        match is_open(inode) {
            true => None,
            false => self.files().remove(&inode).map(|open| open.fd),
        }
    }
}

fn inode_of(number: i32) -> Option<Inode> {
    // SAFETY: `fstat` borrows the number for its call only, and fails if it is not open.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(number.max(0)) };
    let stat = fstat(fd).ok().filter(|_| number >= 0)?;
    Some(Inode(stat.st_dev, stat.st_ino))
}

/// Whether the process has a number for a file.
fn is_open(inode: Inode) -> bool {
    let numbers = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let mut numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.any(|number| inode_of(number) == Some(inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_found_by_each_of_its_numbers() {
        let files = OpenFiles::default();
        assert_eq!(files.find(0), None);
        let file = files.add(Fd(7), Some(3), true).unwrap();
        let other = file.try_clone().unwrap();
        let (inode, fd) = files.find(other.as_raw_fd()).unwrap();
        assert_eq!((inode, fd), (files.find(file.as_raw_fd()).unwrap().0, Fd(7)));
        assert_eq!(files.node(other.as_raw_fd()), Some(Some(3)));
        drop(file);
        assert_eq!(files.remove_unused(inode), None, "the other number has it");
        drop(other);
        assert_eq!(files.remove_unused(inode), Some(Fd(7)));
    }

    #[test]
    fn other_files_are_not_found() {
        let files = OpenFiles::default();
        let _file = files.add(Fd(7), None, false).unwrap();
        assert_eq!(files.find(-1), None);
        assert_eq!(files.find(i32::MAX), None);
        let null = fs::File::open("/dev/null").unwrap();
        assert_eq!(files.find(null.as_raw_fd()), None);
    }
}
