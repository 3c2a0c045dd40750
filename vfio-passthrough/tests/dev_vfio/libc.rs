//! What the program asks of the kernel, answered by the model where it is about VFIO. These functions take the place of
//! those of the C library in this program.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString, c_char, c_int, c_long, c_ulong, c_void};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::bus::Bus;
use vfio_passthrough::model::core::{Fd, IrqData, IrqSet, MapDma, System, UnmapDma};

/// A host, what of it is open in this process, and which call fails.
pub struct World {
    pub system: System,
    /// `/sys`.
    pub sysfs: String,
    /// Files of this process that stand for files of the model.
    fds: BTreeMap<c_int, Fd>,
    /// Of those, the ones of groups and of devices.
    groups: BTreeMap<c_int, u32>,
    devices: BTreeSet<Fd>,
    pub bus: Bus,
    pub calls: u64,
    /// The number of a call, and its errno.
    pub strike: Option<(u64, i32)>,
    /// The request of the call that failed so, if there was one yet; 0 for an open.
    pub struck: Option<u32>,
    /// The errno of each unmapping that failed.
    pub not_unmapped: Vec<Option<i32>>,
}

/// `VFIO_IOMMU_UNMAP_DMA`
pub const UNMAP: u32 = 14;

static WORLD: Mutex<Option<World>> = Mutex::new(None);

/// The world that there is now.
pub fn world() -> MutexGuard<'static, Option<World>> {
    WORLD.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    pub fn new(system: System, sysfs: String) -> Self {
        Self {
            system,
            sysfs,
            fds: BTreeMap::new(),
            groups: BTreeMap::new(),
            devices: BTreeSet::new(),
            bus: Bus::default(),
            calls: 0,
            strike: None,
            struck: None,
            not_unmapped: Vec::new(),
        }
    }

    pub fn fd(&self, fd: c_int) -> Fd {
        self.fds.get(&fd).copied().unwrap_or(Fd(fd))
    }

    /// The group that a file is of.
    pub fn group(&self, fd: c_int) -> Option<u32> {
        self.groups.get(&fd).copied()
    }

    fn pass(&mut self, request: u32) -> io::Result<()> {
        let number = self.calls;
        self.calls += 1;
        match self.strike {
            Some((nth, errno)) if nth == number => {
                self.struck = Some(request);
                Err(io::Error::from_raw_os_error(errno))
            }
            _ => Ok(()),
        }
    }

    /// An anonymous file that stands for one of the model, of a size that has room for all regions.
    fn stand_in(&mut self, fd: Fd) -> c_int {
        // SAFETY: the name is a string that ends with a zero byte.
        let file = unsafe { libc::memfd_create(c"model".as_ptr(), libc::MFD_CLOEXEC) };
        // SAFETY: no memory is touched.
        unsafe { libc::ftruncate(file, 16 << 40) };
        self.fds.insert(file, fd);
        file
    }

    fn open(&mut self, path: &str) -> io::Result<c_int> {
        self.pass(0)?;
        let name = path.strip_prefix("/dev/vfio/").unwrap_or_default();
        if name == "vfio" {
            let container = self.system.open_container();
            return Ok(self.stand_in(container));
        }
        let number = name.parse().unwrap();
        let group = self.system.open_group(number)?;
        let file = self.stand_in(group);
        self.groups.insert(file, number);
        Ok(file)
    }

    fn ioctl(&mut self, fd: Fd, request: u32, argument: usize) -> io::Result<c_int> {
        self.pass(request)?;
        let system = &self.system;
        let signed = |value: u32| value as i32;
        Ok(match request {
            0 => signed(system.api_version(fd)?),
            1 => signed(system.check_extension(fd, argument as u64)?),
            2 => system.set_iommu(fd, argument as u64).map(|()| 0)?,
            3 => {
                let [argsz, flags] = words(argument);
                *flags = system.group_status(fd, *argsz)?;
                0
            }
            4 => {
                let [container] = words(argument);
                system.set_container(fd, self.fd(*container as i32)).map(|()| 0)?
            }
            6 => {
                let device = system.open_device(fd, &text(argument as *const c_char))?;
                let file = self.stand_in(device);
                self.devices.insert(device);
                write_config(file);
                file
            }
            10 => self.set_irqs(fd, argument).map(|()| 0)?,
            11 => system.reset(fd).map(|()| 0)?,
            12 if self.devices.contains(&fd) => self.bus_info(argument).map(|()| 0)?,
            13 if self.devices.contains(&fd) => self.reset_bus(argument).map(|()| 0)?,
            13 | UNMAP => self.dma(fd, request, argument).map(|()| 0)?,
            _ => self.info(fd, request, argument).map(|()| 0)?,
        })
    }

    fn info(&self, fd: Fd, request: u32, argument: usize) -> io::Result<()> {
        let [argsz] = words(argument);
        let buffer = bytes(argument, *argsz as usize);
        match request {
            7 => self.system.device_info(fd, buffer),
            8 => self.system.region_info(fd, buffer),
            9 => self.system.irq_info(fd, buffer),
            12 => self.system.iommu_info(fd, buffer),
            _ => Err(io::Error::from_raw_os_error(libc::ENOTTY)),
        }
    }

    fn dma(&self, fd: Fd, request: u32, argument: usize) -> io::Result<()> {
        let [argsz, flags] = *words(argument);
        if request == UNMAP {
            let [iova, size] = longs(argument + 8);
            let call = UnmapDma { argsz, flags, iova: *iova, size: *size };
            return self.system.unmap_dma(fd, &call).map(|bytes| *size = bytes);
        }
        let [vaddr, iova, size] = *longs(argument + 8);
        self.system.map_dma(fd, &MapDma { argsz, flags, vaddr, iova, size })
    }

    fn set_irqs(&mut self, fd: Fd, argument: usize) -> io::Result<()> {
        let [argsz, flags, index, start, count] = *words(argument);
        let mut fds = Vec::new();
        for place in 0..(argsz as usize - 20) / 4 {
            let [number] = *words(argument + 20 + 4 * place);
            let number = number as i32;
            // Eventfds are the kernel's own: the model has one for each.
            if number >= 0 && !self.fds.contains_key(&number) {
                self.fds.insert(number, self.system.open_eventfd());
            }
            fds.push(self.fd(number));
        }
        let data = if fds.is_empty() { IrqData::None } else { IrqData::Eventfds(fds) };
        self.system.set_irqs(fd, &IrqSet { argsz, flags, index, start, count, data })
    }
}

/// An NVMe's identity, a BAR, MSI-X with its table in it, and FLR, where its config space is.
fn write_config(file: c_int) {
    let parts: [(i64, &[u8]); 6] = [
        (0x00, &[0x36, 0x1b, 0x10, 0x00, 3, 0, 0x10, 0, 2, 2, 8, 1]),
        (0x10, &[4]),
        (0x34, &[0x40]),
        (0x3d, &[1]),
        (0x40, &[0x11, 0x80, 64, 0, 0, 0x20, 0, 0, 0, 0x30, 0, 0]),
        (0x80, &[0x10, 0, 2, 0, 0, 0, 0, 0x10]),
    ];
    for (offset, part) in parts {
        // SAFETY: the kernel reads as many bytes as there are.
        unsafe { libc::pwrite64(file, part.as_ptr().cast(), part.len(), (7 << 40) + offset) };
    }
}

pub fn words<const N: usize>(address: usize) -> &'static mut [u32; N] {
    // SAFETY: the argument of an ioctl, which the caller lends for the call, is at least as long; it is aligned.
    unsafe { &mut *(address as *mut [u32; N]) }
}

fn longs<const N: usize>(address: usize) -> &'static mut [u64; N] {
    // SAFETY: as for `words`.
    unsafe { &mut *(address as *mut [u64; N]) }
}

fn bytes(address: usize, length: usize) -> &'static mut [u8] {
    // SAFETY: as for `words`; the argument says itself how long it is.
    unsafe { std::slice::from_raw_parts_mut(address as *mut u8, length) }
}

fn text(pointer: *const c_char) -> String {
    // SAFETY: a path or a name of the C library's functions ends with a zero byte.
    unsafe { CStr::from_ptr(pointer) }.to_str().unwrap_or_default().to_owned()
}

fn answer(result: io::Result<c_int>) -> c_int {
    result.unwrap_or_else(|error| {
        // SAFETY: it touches nothing.
        let errno = unsafe { libc::__errno_location() };
        // SAFETY: the place of this thread's errno.
        unsafe { *errno = error.raw_os_error().unwrap_or(libc::EIO) };
        -1
    })
}

/// Where a path is: what is below /sys is in the world's folder.
fn place(path: *const c_char) -> CString {
    let path = text(path);
    let sysfs = world().as_ref().map(|world| world.sysfs.clone());
    match (path.strip_prefix("/sys/bus"), sysfs) {
        (Some(rest), Some(sysfs)) => CString::new(format!("{sysfs}/bus{rest}")).unwrap(),
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
            world.groups.remove(&fd);
            world.devices.remove(&file);
            world.system.close(file).unwrap();
        }
    }
    // SAFETY: what the caller asked for.
    unsafe { libc::syscall(libc::SYS_close, fd) as c_int }
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
