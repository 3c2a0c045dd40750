//! The machine of this process: what the calls of the program do.
//!
//! A call returns `None` if it is not for the machine: the C library has to answer it.

use std::env;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{BorrowedFd, IntoRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Arc, OnceLock};

use nix::errno::Errno;
use vfio_model::{Fd, System};

use crate::argument::{self, Argument};
use crate::eventfd;
use crate::kvm::Link;
use crate::machine::{Machine, VARIABLE};
use crate::memory;
use crate::open_files::OpenFiles;
use crate::paths::{self, Node};

/// `VFIO_GROUP_GET_DEVICE_FD`
const GET_DEVICE_FD: u32 = 6;

/// A number that no file of the model has.
const NOT_OPEN: Fd = Fd(i32::MAX);

/// The most that a read or write transfers.
const LARGEST: usize = 1 << 20;

/// The machine, with the program's open files.
pub struct Host {
    root: PathBuf,
    machine: Machine,
    system: System,
    files: OpenFiles,
}

/// The machine that the environment names. A child of `fork` has a copy.
pub fn host() -> Option<&'static Host> {
    static HOST: OnceLock<Option<Host>> = OnceLock::new();
    HOST.get_or_init(|| env::var_os(VARIABLE).map(|root| Host::or_exit(root.into()))).as_ref()
}

impl Host {
    fn or_exit(root: PathBuf) -> Self {
        let machine = Machine::read(&root).unwrap_or_else(|error| {
            eprintln!("vfio_preload: cannot read the machine in {}: {error}", root.display());
            process::exit(1);
        });
        Self { root, system: machine.describe().build(), machine, files: OpenFiles::default() }
    }

    /// Where a path is in the folder of the machine.
    pub fn inside(&self, path: &Path) -> Option<PathBuf> {
        paths::inside(&self.root, path)
    }

    /// The path as the program knows it.
    pub fn outside(&self, path: &Path) -> PathBuf {
        paths::outside(&self.root, path)
    }

    /// Opens a device node of VFIO.
    pub fn open(&self, path: &Path, flags: i32) -> Option<io::Result<i32>> {
        let node = Node::of(path)?;
        let opened = match node {
            Node::Container => Ok(self.system.open_container()),
            Node::Group(group) => self.system.open_group(group),
            Node::Iommufd => self.system.open_iommufd(),
            Node::Device(number) => match self.machine.devices.get(number) {
                Some(device) => self.system.open_cdev(device.address),
                None => Err(Errno::ENOENT.into()),
            },
        };
        let close_on_exec = flags & libc::O_CLOEXEC != 0;
        Some(opened.and_then(|fd| self.number_for(fd, Some(node.number()), close_on_exec)))
    }

    /// Makes a file of the program for one of the model.
    fn number_for(&self, fd: Fd, node: Option<u64>, close_on_exec: bool) -> io::Result<i32> {
        let file = self.files.add(fd, node, close_on_exec);
        if file.is_err() {
            self.system.close(fd)?;
        }
        file.map(OwnedFd::into_raw_fd)
    }

    /// Whether a file is one of VFIO, and the number of the device node that opened it.
    pub fn node(&self, number: i32) -> Option<Option<u64>> {
        self.files.node(number)
    }

    /// Closes a file of VFIO, by a function that closes its number.
    pub fn close(
        &self,
        number: i32,
        close: impl FnOnce(i32) -> io::Result<i32>,
    ) -> Option<io::Result<i32>> {
        let (inode, _) = self.files.find(number)?;
        let closed = close(number);
        if let Some(fd) = self.files.remove_unused(inode) {
            return Some(closed.and_then(|done| self.system.close(fd).map(|()| done)));
        }
        Some(closed)
    }

    /// The ioctls of VFIO and iommufd, and those that link KVM with a file of VFIO.
    pub fn ioctl(&self, number: i32, request: u64, address: usize) -> Option<io::Result<i32>> {
        if let Some(link) = Link::read(request, address) {
            let (_, fd) = self.files.find(link.file)?;
            return Some(if link.adds { self.link(fd) } else { Ok(0) });
        }
        let (_, fd) = self.files.find(number)?;
        let request = argument::number_of(request)?;
        Some(self.call(fd, request, address))
    }

    /// Links KVM with a file. The link ends at once: nothing shows when KVM's file is closed.
    fn link(&self, fd: Fd) -> io::Result<i32> {
        let kvm = self.system.open_kvm();
        let linked = self.system.link(kvm, fd);
        self.system.close(kvm)?;
        linked.map(|()| 0)
    }

    fn call(&self, fd: Fd, request: u32, address: usize) -> io::Result<i32> {
        let argument = Argument::read(request, address);
        let mut argument = argument.map_err(|error| self.refusal(fd, request, error))?;
        let mut passed = Vec::new();
        let mut translate = |number| self.translate(number, &mut passed);
        let result = self.system.ioctl(fd, request, &mut argument.bytes, &mut translate);
        // What the call needs of them, it holds.
        passed.into_iter().try_for_each(|fd| self.system.close(fd))?;
        argument.write_back()?;
        match (request, result?) {
            (GET_DEVICE_FD, device) => self.number_for(Fd(device), None, true),
            (_, value) => Ok(value),
        }
    }

    /// The error of a call whose argument cannot be read: the kernel looks at the request first.
    fn refusal(&self, fd: Fd, request: u32, error: io::Error) -> io::Error {
        let result = self.system.ioctl(fd, request, &mut [], &mut |_| NOT_OPEN);
        let is_unknown = |error: &io::Error| error.raw_os_error() == Some(libc::ENOTTY);
        result.err().filter(is_unknown).unwrap_or(error)
    }

    /// The file of the model for a number in an argument. `passed` collects those that are made
    /// for this call.
    fn translate(&self, number: i32, passed: &mut Vec<Fd>) -> Fd {
        if let Some((_, fd)) = self.files.find(number) {
            return fd;
        }
        // SAFETY: the program passes the number as that of an open file. If it is not open, the
        // first use fails.
        let borrowed = unsafe { BorrowedFd::borrow_raw(number.max(0)) };
        let opened = eventfd::open_in(&self.system, borrowed, number);
        opened.inspect(|fd| passed.push(*fd)).unwrap_or(NOT_OPEN)
    }

    /// `pread`
    pub fn read(
        &self,
        number: i32,
        at: i64,
        to: usize,
        length: usize,
    ) -> Option<io::Result<isize>> {
        let (_, fd) = self.files.find(number)?;
        Some(self.read_at(fd, at, to, length))
    }

    fn read_at(&self, fd: Fd, at: i64, to: usize, length: usize) -> io::Result<isize> {
        let mut data = vec![0; length.min(LARGEST)];
        let read = self.system.read(fd, offset(at)?, &mut data)?;
        memory::write(to, data.get(..read).unwrap_or(&data))?;
        count(read)
    }

    /// `pwrite`
    pub fn write(
        &self,
        number: i32,
        at: i64,
        from: usize,
        length: usize,
    ) -> Option<io::Result<isize>> {
        let (_, fd) = self.files.find(number)?;
        let data = memory::read(from, length.min(LARGEST));
        let written = data.and_then(|data| self.system.write(fd, offset(at)?, &data));
        Some(written.and_then(count))
    }

    /// The file to map for part of a file of VFIO.
    pub fn mmap(
        &self,
        number: i32,
        at: i64,
        length: usize,
        flags: i32,
    ) -> Option<io::Result<Arc<File>>> {
        let (_, fd) = self.files.find(number)?;
        if flags & libc::MAP_TYPE == libc::MAP_PRIVATE {
            return Some(Err(Errno::EINVAL.into()));
        }
        Some(offset(at).and_then(|at| self.system.mmap(fd, at, length as u64)))
    }

    /// The flags of a mapping: huge pages may be ordinary memory.
    pub fn map_flags(&self, flags: i32) -> Option<i32> {
        let size = libc::MAP_HUGE_MASK << libc::MAP_HUGE_SHIFT;
        self.machine.huge_pages.then_some(flags & !(libc::MAP_HUGETLB | size))
    }

    /// The program mapped memory of a device, or anything else.
    pub fn mapped(&self, address: usize, length: usize, is_device: bool) {
        let memory = range(address, length);
        match is_device {
            true => self.system.mapped_at(memory),
            false => self.system.munmap(&memory),
        }
    }
}

/// Addresses in whole pages.
fn range(address: usize, length: usize) -> Range<u64> {
    let end = (address as u64).saturating_add(length as u64);
    address as u64..end.checked_next_multiple_of(4096).unwrap_or(u64::MAX)
}

fn offset(at: i64) -> io::Result<u64> {
    u64::try_from(at).map_err(|_| Errno::EINVAL.into())
}

fn count(bytes: usize) -> io::Result<isize> {
    isize::try_from(bytes).map_err(io::Error::other)
}
