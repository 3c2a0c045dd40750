//! System calls of this program: the model answers those for VFIO, the kernel answers the others.
//! These functions replace those of the C library.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString, c_char, c_int, c_long, c_ulong, c_void};
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd as _, FromRawFd as _, IntoRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vfio_model::{Fd, PciAddress, System};

/// A host, its open files in this process, and the calls that fail.
pub struct World {
    pub system: System,
    /// `/sys`.
    sysfs: PathBuf,
    /// Files of this process that represent files of the model.
    fds: BTreeMap<c_int, Fd>,
    /// The files of devices.
    devices: BTreeSet<Fd>,
    /// The groups whose status was asked.
    asked: BTreeSet<Fd>,
    /// The memfds.
    pub memories: BTreeSet<Fd>,
    /// The containers that were opened, in order.
    containers: Vec<Fd>,
    /// The device of each node `/dev/vfio/devices/vfioN`, by N.
    pub nodes: BTreeMap<u32, PciAddress>,
    /// Reads of sysfs are calls, which can fail.
    pub counts_sysfs: bool,
    /// The request of each call; 0 for an open.
    pub calls: Vec<u32>,
    /// The numbers of calls that fail, and their errno.
    inject: Option<(Range<usize>, i32)>,
    /// The next call of this request fails.
    inject_next: Option<(u32, i32)>,
    /// The requests of the calls that failed.
    pub failed: Vec<u32>,
    /// The number of nodes that were opened.
    pub opened: usize,
    /// The number of bus resets.
    pub bus_resets: u64,
    /// The errno of each unmapping that failed.
    pub not_unmapped: Vec<Option<i32>>,
    /// The number of open devices at each unmapping.
    pub open_at_unmap: Vec<usize>,
}

/// Requests, by their number from `VFIO_BASE` on.
pub const SET_IOMMU: u32 = 2;
pub const STATUS: u32 = 3;
pub const SET_CONTAINER: u32 = 4;
pub const OPEN_DEVICE: u32 = 6;
pub const RESET: u32 = 11;
/// `VFIO_IOMMU_GET_INFO`; on a device, `VFIO_DEVICE_GET_PCI_HOT_RESET_INFO`.
pub const INFO: u32 = 12;
/// `VFIO_IOMMU_MAP_DMA`; on a device, `VFIO_DEVICE_PCI_HOT_RESET`.
pub const MAP: u32 = 13;
pub const UNMAP: u32 = 14;
pub const BIND: u32 = 18;
/// Requests of `/dev/iommu`.
pub const IOMMU_DESTROY: u32 = 28;
pub const IOAS_ALLOC: u32 = 29;
pub const IOVA_RANGES: u32 = 32;
pub const IOAS_UNMAP: u32 = 34;
pub const IOAS_MAP_FILE: u32 = 43;
/// Stand for calls that are no ioctls of VFIO: `KVM_DEV_VFIO_FILE_ADD`, `KVM_DEV_VFIO_FILE_DEL`,
/// and a read of sysfs.
pub const LINK: u32 = 100;
pub const UNLINK: u32 = 101;
pub const SYSFS: u32 = 102;
/// Stands for `STATUS` of a group that leaves.
pub const LEAVING: u32 = 103;

static WORLD: Mutex<Option<World>> = Mutex::new(None);

/// The present world.
pub fn world() -> MutexGuard<'static, Option<World>> {
    WORLD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Replaces the world. The previous one is dropped without the lock, because closing its files
/// takes the lock.
pub fn set_world(world: World) {
    let former = self::world().replace(world);
    drop(former);
}

impl World {
    pub fn new(system: System, sysfs: PathBuf) -> Self {
        Self {
            system,
            sysfs,
            fds: BTreeMap::new(),
            devices: BTreeSet::new(),
            asked: BTreeSet::new(),
            memories: BTreeSet::new(),
            containers: Vec::new(),
            nodes: BTreeMap::new(),
            counts_sysfs: false,
            calls: Vec::new(),
            inject: None,
            inject_next: None,
            failed: Vec::new(),
            opened: 0,
            bus_resets: 0,
            not_unmapped: Vec::new(),
            open_at_unmap: Vec::new(),
        }
    }

    pub fn fd(&self, fd: c_int) -> Fd {
        self.fds.get(&fd).copied().unwrap_or(Fd(fd))
    }

    /// Makes these calls fail, counted from now on.
    pub fn inject(&mut self, calls: Range<usize>, errno: i32) {
        let now = self.calls.len();
        self.inject = Some((now + calls.start..now.saturating_add(calls.end), errno));
    }

    /// Makes the next call of a request fail.
    pub fn inject_next(&mut self, request: u32, errno: i32) {
        self.inject_next = Some((request, errno));
    }

    /// Makes no further call fail.
    pub fn clear(&mut self) {
        (self.inject, self.inject_next) = (None, None);
    }

    /// The number of calls of a request.
    pub fn made(&self, request: u32) -> usize {
        self.calls.iter().filter(|call| **call == request).count()
    }

    /// The mappings of each container, in the order in which they were opened.
    pub fn mappings(&self) -> Vec<Vec<Range<u64>>> {
        // A closed container has none.
        let mappings = |fd: &Fd| self.system.mappings(*fd).unwrap_or_default();
        self.containers.iter().map(mappings).collect()
    }

    /// Counts a call, which fails if it is one of those that are to fail.
    pub fn pass(&mut self, request: u32) -> io::Result<()> {
        let number = self.calls.len();
        self.calls.push(request);
        let next = self.inject_next.take_if(|(wanted, _)| *wanted == request);
        let injected = self.inject.as_ref().filter(|(calls, _)| calls.contains(&number));
        match next.map(|(_, errno)| errno).or(injected.map(|(_, errno)| *errno)) {
            Some(errno) => {
                self.failed.push(request);
                Err(io::Error::from_raw_os_error(errno))
            }
            None => Ok(()),
        }
    }

    /// Makes a file represent one of the model.
    fn stand_in(&mut self, file: OwnedFd, fd: Fd) -> c_int {
        let file = file.into_raw_fd();
        self.fds.insert(file, fd);
        file
    }

    /// A node is a character device.
    fn anonymous(&mut self, fd: Fd) -> c_int {
        let (path, flags) = (c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        // SAFETY: the path is a string that ends with a zero byte.
        let file = unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path, flags) as c_int };
        // SAFETY: the file was made just now, and nothing else owns it.
        self.stand_in(unsafe { OwnedFd::from_raw_fd(file) }, fd)
    }

    fn open(&mut self, path: &str) -> io::Result<c_int> {
        self.pass(0)?;
        self.opened += 1;
        if path == "/dev/iommu" {
            let iommufd = self.system.open_iommufd()?;
            return Ok(self.anonymous(iommufd));
        }
        let name = path.strip_prefix("/dev/vfio/").unwrap_or_default();
        if let Some(number) = name.strip_prefix("devices/vfio") {
            let device =
                self.system.open_cdev(*self.nodes.get(&number.parse().unwrap()).unwrap())?;
            self.devices.insert(device);
            return Ok(self.anonymous(device));
        }
        if name == "vfio" {
            let container = self.system.open_container();
            self.containers.push(container);
            return Ok(self.anonymous(container));
        }
        let group = self.system.open_group(name.parse().unwrap())?;
        Ok(self.anonymous(group))
    }

    /// Makes a file descriptor for a device's file. The device's memory is mapped from it.
    fn opened(&mut self, device: Fd) -> io::Result<c_int> {
        let memory = self.system.mmap(device, 0, 0)?;
        self.devices.insert(device);
        Ok(self.stand_in(memory.try_clone()?.into(), device))
    }

    /// Gives a character device that was bound its memory, which is mapped from its file.
    fn bound(&mut self, file: c_int, device: Fd) -> io::Result<()> {
        let memory = self.system.mmap(device, 0, 0)?;
        // SAFETY: both files are open, and the world owns the meaning of `file`.
        let result = unsafe { libc::dup3(memory.as_raw_fd(), file, libc::O_CLOEXEC) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// `IOMMU_IOAS_IOVA_RANGES`: the model has the array behind the struct.
    fn iova_ranges(&mut self, fd: Fd, argument: usize) -> io::Result<c_int> {
        let own = bytes(argument, 32);
        let count = u32::from_ne_bytes(*bytes(argument + 8, 4).first_chunk().unwrap()) as usize;
        let array = usize::from_ne_bytes(*bytes(argument + 16, 8).first_chunk().unwrap());
        let mut buffer = [own.to_vec(), vec![0; count * 16]].concat();
        let result = self.system.ioctl(fd, IOVA_RANGES, &mut buffer, &mut Fd);
        let (reply, ranges) = buffer.split_at(32);
        own.copy_from_slice(reply);
        if count > 0 {
            bytes(array, count * 16).copy_from_slice(ranges);
        }
        result
    }

    fn ioctl(&mut self, file: c_int, request: u32, argument: usize) -> io::Result<c_int> {
        let fd = self.fd(file);
        let is_leaving = request == STATUS && !self.asked.insert(fd);
        self.pass(if is_leaving { LEAVING } else { request })?;
        if request == UNMAP {
            self.open_at_unmap.push(self.devices.len());
        }
        if request == IOVA_RANGES {
            return self.iova_ranges(fd, argument);
        }
        let mut number = argument.to_ne_bytes();
        let argument = match request {
            0..=2 | 5 | 11 => &mut number[..],
            SET_CONTAINER => bytes(argument, 4),
            6 => bytes(argument, text(argument as *const c_char).len()),
            _ => bytes(
                argument,
                u32::from_ne_bytes(*bytes(argument, 4).first_chunk().unwrap()) as usize,
            ),
        };
        let (system, fds, memories) = (&self.system, &mut self.fds, &mut self.memories);
        // Eventfds and memfds are files of the kernel. The model has one for each.
        let mut translate = |file| {
            *fds.entry(file).or_insert_with(|| match request {
                IOAS_MAP_FILE => {
                    let memory = system.open_memory(1 << 30);
                    memories.insert(memory);
                    memory
                }
                _ => system.open_eventfd(),
            })
        };
        let result = system.ioctl(fd, request, argument, &mut translate)?;
        match request {
            6 => return self.opened(Fd(result)),
            BIND => self.bound(file, fd)?,
            MAP if self.devices.contains(&fd) => self.bus_resets += 1,
            _ => {}
        }
        Ok(result)
    }
}

fn bytes(address: usize, length: usize) -> &'static mut [u8] {
    // SAFETY: the caller's argument is at least as long, and is valid during the call.
    unsafe { std::slice::from_raw_parts_mut(address as *mut u8, length) }
}

fn text(pointer: *const c_char) -> String {
    // SAFETY: paths and names for the C library's functions end with a zero byte.
    unsafe { CStr::from_ptr(pointer) }.to_str().unwrap_or_default().to_owned()
}

fn answer<T: From<i8>>(result: io::Result<T>) -> T {
    result.unwrap_or_else(|error| {
        // SAFETY: the call accesses no memory.
        let errno = unsafe { libc::__errno_location() };
        // SAFETY: the pointer is to this thread's errno.
        unsafe { *errno = error.raw_os_error().unwrap_or(libc::EIO) };
        T::from(-1)
    })
}

/// Translates a path: the world's folder has the files below /sys/bus.
fn place(path: *const c_char) -> io::Result<CString> {
    let path = text(path);
    let place = match (path.strip_prefix("/sys/bus"), world().as_mut()) {
        (Some(rest), Some(world)) => {
            if world.counts_sysfs {
                world.pass(SYSFS)?;
            }
            format!("{}/bus{rest}", world.sysfs.display())
        }
        _ => path,
    };
    Ok(CString::new(place).unwrap())
}

#[unsafe(no_mangle)]
extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: usize) -> c_int {
    let is_ours = |world: &&mut World| world.fds.contains_key(&fd) && request >> 8 == 0x3b;
    if let Some(world) = world().as_mut().filter(is_ours) {
        let request = request as u32 - 0x3b64;
        let result = world.ioctl(fd, request, argument);
        if let (UNMAP | IOAS_UNMAP, Err(error)) = (request, &result) {
            world.not_unmapped.push(error.raw_os_error());
        }
        return answer(result);
    }
    // SAFETY: the arguments are the caller's.
    unsafe { libc::syscall(libc::SYS_ioctl, fd, request, argument) as c_int }
}

#[unsafe(no_mangle)]
extern "C" fn open64(path: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int {
    let name = text(path);
    if name.starts_with("/dev/vfio/") || name == "/dev/iommu" {
        if let Some(world) = world().as_mut() {
            return answer(world.open(&name));
        }
    }
    let path = match place(path) {
        Ok(path) => path,
        Err(error) => return answer(Err(error)),
    };
    // SAFETY: the arguments are the caller's, except for the path.
    unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, mode) as c_int }
}

#[unsafe(no_mangle)]
extern "C" fn opendir(path: *const c_char) -> *mut libc::DIR {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    match open64(path, flags, 0) {
        -1 => std::ptr::null_mut(),
        // SAFETY: the folder was opened just now, and nothing else owns it.
        folder => unsafe { libc::fdopendir(folder) },
    }
}

#[unsafe(no_mangle)]
extern "C" fn close(fd: c_int) -> c_int {
    if let Some(world) = world().as_mut() {
        if let Some(file) = world.fds.remove(&fd) {
            world.devices.remove(&file);
            world.system.close(file).unwrap();
        }
    }
    // SAFETY: the arguments are the caller's.
    unsafe { libc::syscall(libc::SYS_close, fd) as c_int }
}

#[unsafe(no_mangle)]
extern "C" fn pread64(fd: c_int, buffer: *mut u8, size: usize, offset: i64) -> isize {
    if let Some((world, device)) =
        world().as_ref().and_then(|world| Some((world, world.fds.get(&fd)?)))
    {
        let data = bytes(buffer as usize, size);
        let read = world.system.read(*device, offset as u64, data);
        return answer(read.map(|length| length as isize));
    }
    // SAFETY: the arguments are the caller's.
    unsafe { libc::syscall(libc::SYS_pread64, fd, buffer, size, offset) as isize }
}

#[unsafe(no_mangle)]
extern "C" fn pwrite64(fd: c_int, buffer: *const u8, size: usize, offset: i64) -> isize {
    if let Some((world, device)) =
        world().as_ref().and_then(|world| Some((world, world.fds.get(&fd)?)))
    {
        let data = bytes(buffer as usize, size);
        let written = world.system.write(*device, offset as u64, data);
        return answer(written.map(|length| length as isize));
    }
    // SAFETY: the arguments are the caller's.
    unsafe { libc::syscall(libc::SYS_pwrite64, fd, buffer, size, offset) as isize }
}

#[unsafe(no_mangle)]
extern "C" fn readlink(path: *const c_char, buffer: *mut c_char, size: usize) -> isize {
    let path = match place(path) {
        Ok(path) => path,
        Err(error) => return answer(Err(error)),
    };
    // SAFETY: the arguments are the caller's, except for the path.
    unsafe { libc::syscall(libc::SYS_readlink, path.as_ptr(), buffer, size) as isize }
}

#[unsafe(no_mangle)]
extern "C" fn statx(
    folder: c_int,
    path: *const c_char,
    flags: c_int,
    mask: u32,
    buffer: *mut c_void,
) -> c_int {
    // std checks so whether the kernel has this call.
    if path.is_null() {
        // SAFETY: the call accesses no memory.
        return unsafe { libc::syscall(libc::SYS_statx, 0, 0, 0, mask, 0) as c_int };
    }
    let path = match place(path) {
        Ok(path) => path,
        Err(error) => return answer(Err(error)),
    };
    // SAFETY: the arguments are the caller's, except for the path.
    unsafe {
        libc::syscall(libc::SYS_statx, c_long::from(folder), path.as_ptr(), flags, mask, buffer)
            as c_int
    }
}
