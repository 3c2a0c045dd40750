//! What the program asks of the kernel, answered by the model where it is about VFIO. These
//! functions take the place of those of the C library in this program.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString, c_char, c_int, c_long, c_ulong, c_void};
use std::io;
use std::ops::Range;
use std::os::fd::{FromRawFd as _, IntoRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vfio_model::{Fd, System};

/// A host, what of it is open in this process, and which calls fail.
pub struct World {
    pub system: System,
    /// `/sys`.
    sysfs: PathBuf,
    /// Files of this process that stand for files of the model.
    fds: BTreeMap<c_int, Fd>,
    /// The devices' files among them.
    devices: BTreeSet<Fd>,
    /// The containers that were opened, in order.
    containers: Vec<Fd>,
    /// The request of each call; 0 for an open.
    pub calls: Vec<u32>,
    /// The numbers of calls that fail, and with which errno.
    inject: Option<(Range<usize>, i32)>,
    /// The next call of this request fails.
    inject_next: Option<(u32, i32)>,
    /// The requests of those that failed so.
    pub failed: Vec<u32>,
    /// How many resets of a bus there were.
    pub bus_resets: u64,
    /// The errno of each unmapping that failed.
    pub not_unmapped: Vec<Option<i32>>,
}

/// Requests, by their number from `VFIO_BASE` on.
pub const SET_IOMMU: u32 = 2;
pub const SET_CONTAINER: u32 = 4;
/// `VFIO_IOMMU_GET_INFO`; on a device, `VFIO_DEVICE_GET_PCI_HOT_RESET_INFO`.
pub const INFO: u32 = 12;
/// `VFIO_IOMMU_MAP_DMA`; on a device, `VFIO_DEVICE_PCI_HOT_RESET`.
pub const MAP: u32 = 13;
pub const UNMAP: u32 = 14;

static WORLD: Mutex<Option<World>> = Mutex::new(None);

/// The world that there is now.
pub fn world() -> MutexGuard<'static, Option<World>> {
    WORLD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Another world. The former one closes its files when the lock is free again, since closing takes
/// it.
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
            containers: Vec::new(),
            calls: Vec::new(),
            inject: None,
            inject_next: None,
            failed: Vec::new(),
            bus_resets: 0,
            not_unmapped: Vec::new(),
        }
    }

    pub fn fd(&self, fd: c_int) -> Fd {
        self.fds.get(&fd).copied().unwrap_or(Fd(fd))
    }

    /// These calls, of those from now on, fail.
    pub fn inject(&mut self, calls: Range<usize>, errno: i32) {
        let now = self.calls.len();
        self.inject = Some((now + calls.start..now.saturating_add(calls.end), errno));
    }

    /// The next call of a request fails.
    pub fn inject_next(&mut self, request: u32, errno: i32) {
        self.inject_next = Some((request, errno));
    }

    /// No call fails any more.
    pub fn clear(&mut self) {
        (self.inject, self.inject_next) = (None, None);
    }

    /// How many calls of a request there were.
    pub fn made(&self, request: u32) -> usize {
        self.calls.iter().filter(|call| **call == request).count()
    }

    /// What is mapped in each container, in the order in which they were opened.
    pub fn mappings(&self) -> Vec<Vec<Range<u64>>> {
        // One that is closed has none.
        let mappings = |fd: &Fd| self.system.mappings(*fd).unwrap_or_default();
        self.containers.iter().map(mappings).collect()
    }

    fn pass(&mut self, request: u32) -> io::Result<()> {
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

    /// A file that stands for one of the model.
    fn stand_in(&mut self, file: OwnedFd, fd: Fd) -> c_int {
        let file = file.into_raw_fd();
        self.fds.insert(file, fd);
        file
    }

    fn anonymous(&mut self, fd: Fd) -> c_int {
        // SAFETY: the name is a string that ends with a zero byte.
        let file = unsafe { libc::memfd_create(c"model".as_ptr(), libc::MFD_CLOEXEC) };
        // SAFETY: the file was made just now, and nobody else has it.
        self.stand_in(unsafe { OwnedFd::from_raw_fd(file) }, fd)
    }

    fn open(&mut self, path: &str) -> io::Result<c_int> {
        self.pass(0)?;
        let name = path.strip_prefix("/dev/vfio/").unwrap_or_default();
        if name == "vfio" {
            let container = self.system.open_container();
            self.containers.push(container);
            return Ok(self.anonymous(container));
        }
        let group = self.system.open_group(name.parse().unwrap())?;
        Ok(self.anonymous(group))
    }

    /// The number by which this process knows a device's file, which has the device's memory in it.
    fn opened(&mut self, device: Fd) -> io::Result<c_int> {
        let memory = self.system.mmap(device, 0, 0)?;
        self.devices.insert(device);
        Ok(self.stand_in(memory.try_clone()?.into(), device))
    }

    fn ioctl(&mut self, fd: Fd, request: u32, argument: usize) -> io::Result<c_int> {
        self.pass(request)?;
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
        let (system, fds) = (&self.system, &mut self.fds);
        // Eventfds are the kernel's own: the model has one for each.
        let mut translate = |file| *fds.entry(file).or_insert_with(|| system.open_eventfd());
        let result = system.ioctl(fd, request, argument, &mut translate)?;
        match request {
            6 => return self.opened(Fd(result)),
            MAP if self.devices.contains(&fd) => self.bus_resets += 1,
            _ => {}
        }
        Ok(result)
    }
}

fn bytes(address: usize, length: usize) -> &'static mut [u8] {
    // SAFETY: the argument of a call, which the caller lends for it, is at least as long.
    unsafe { std::slice::from_raw_parts_mut(address as *mut u8, length) }
}

fn text(pointer: *const c_char) -> String {
    // SAFETY: a path or a name of the C library's functions ends with a zero byte.
    unsafe { CStr::from_ptr(pointer) }.to_str().unwrap_or_default().to_owned()
}

fn answer<T: From<i8>>(result: io::Result<T>) -> T {
    result.unwrap_or_else(|error| {
        // SAFETY: it touches nothing.
        let errno = unsafe { libc::__errno_location() };
        // SAFETY: the place of this thread's errno.
        unsafe { *errno = error.raw_os_error().unwrap_or(libc::EIO) };
        T::from(-1)
    })
}

/// Where a path is: what is below /sys is in the world's folder.
fn place(path: *const c_char) -> CString {
    let path = text(path);
    let sysfs = world().as_ref().map(|world| world.sysfs.clone());
    match (path.strip_prefix("/sys/bus"), sysfs) {
        (Some(rest), Some(sysfs)) => {
            CString::new(format!("{}/bus{rest}", sysfs.display())).unwrap()
        }
        _ => CString::new(path).unwrap(),
    }
}

#[unsafe(no_mangle)]
extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: usize) -> c_int {
    let is_ours = |world: &&mut World| world.fds.contains_key(&fd) && request >> 8 == 0x3b;
    if let Some(world) = world().as_mut().filter(is_ours) {
        let (fd, request) = (world.fd(fd), request as u32 - 0x3b64);
        let result = world.ioctl(fd, request, argument);
        if let (UNMAP, Err(error)) = (request, &result) {
            world.not_unmapped.push(error.raw_os_error());
        }
        return answer(result);
    }
    // SAFETY: what the caller asked for.
    unsafe { libc::syscall(libc::SYS_ioctl, fd, request, argument) as c_int }
}

#[unsafe(no_mangle)]
extern "C" fn open64(path: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int {
    let name = text(path);
    if name.starts_with("/dev/vfio/") {
        if let Some(world) = world().as_mut() {
            return answer(world.open(&name));
        }
    }
    // SAFETY: what the caller asked for.
    unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path, flags, mode) as c_int }
}

#[unsafe(no_mangle)]
extern "C" fn close(fd: c_int) -> c_int {
    if let Some(world) = world().as_mut() {
        if let Some(file) = world.fds.remove(&fd) {
            world.devices.remove(&file);
            world.system.close(file).unwrap();
        }
    }
    // SAFETY: what the caller asked for.
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
    // SAFETY: what the caller asked for.
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
    // SAFETY: what the caller asked for.
    unsafe { libc::syscall(libc::SYS_pwrite64, fd, buffer, size, offset) as isize }
}

#[unsafe(no_mangle)]
extern "C" fn readlink(path: *const c_char, buffer: *mut c_char, size: usize) -> isize {
    let path = place(path);
    // SAFETY: what the caller asked for, of another path.
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
    // std asks so whether there is such a call.
    if path.is_null() {
        // SAFETY: no memory is touched.
        return unsafe { libc::syscall(libc::SYS_statx, 0, 0, 0, mask, 0) as c_int };
    }
    let path = place(path);
    // SAFETY: what the caller asked for, of another path.
    unsafe {
        libc::syscall(libc::SYS_statx, c_long::from(folder), path.as_ptr(), flags, mask, buffer)
            as c_int
    }
}
