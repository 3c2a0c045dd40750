//! Calls of the C library that reach the model: this program runs each of its tests again by
//! `on-model`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::env;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::os::unix::fs::FileExt as _;
use std::process::Command;
use std::ptr;

use nix::sys::eventfd::{EfdFlags, EventFd};

/// `VFIO_TYPE`. The number of the first request is 100.
const FIRST: u64 = 0x3b00;

/// The offsets of config space and of BAR0 in a device's file.
const CONFIG: u64 = 7 << 40;
const BAR0: u64 = 0;

/// Runs a test by `on-model`, unless this is that run.
fn on_model(test: &str, run: fn()) {
    if env::var_os("VFIO_PRELOAD").is_some() {
        return run();
    }
    let own = env::current_exe().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_on-model"));
    let output = command.arg(own).args(["--exact", test, "--nocapture"]).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

fn open(path: &str) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

fn ioctl(file: &File, request: u64, argument: usize) -> io::Result<i32> {
    // SAFETY: each argument of these tests is a number, a struct that lives, or a wrong address,
    // for which the call fails.
    match unsafe { libc::ioctl(file.as_raw_fd(), FIRST | request, argument) } {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}

fn code<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

/// Opens the card by its group.
fn device(container: &File, group: &File) -> File {
    let number = container.as_raw_fd();
    ioctl(group, 104, ptr::from_ref(&number) as usize).unwrap();
    ioctl(container, 102, 3).unwrap();
    let number = ioctl(group, 106, c"0000:01:00.0".as_ptr() as usize).unwrap();
    // SAFETY: the call has just opened it.
    unsafe { File::from_raw_fd(number) }
}

#[test]
fn each_number_of_a_file_is_the_file() {
    on_model("each_number_of_a_file_is_the_file", || {
        let (container, group) = (open("/dev/vfio/vfio").unwrap(), open("/dev/vfio/1").unwrap());
        let other = container.try_clone().unwrap();
        drop(container);
        let device = device(&other, &group);
        drop((other, group));
        let other = device.try_clone().unwrap();
        drop(device);
        assert_eq!(code(open("/dev/vfio/1")), Some(libc::EBUSY));
        let null = File::open("/dev/null").unwrap();
        // SAFETY: `other` has another file then, which it closes.
        assert_eq!(unsafe { libc::dup2(null.as_raw_fd(), other.as_raw_fd()) }, other.as_raw_fd());
        open("/dev/vfio/1").unwrap();
    });
}

#[test]
fn a_bar_is_mapped_and_config_space_is_not() {
    on_model("a_bar_is_mapped_and_config_space_is_not", || {
        let (container, group) = (open("/dev/vfio/vfio").unwrap(), open("/dev/vfio/1").unwrap());
        let device = device(&container, &group);
        let map = |at: u64| {
            let (access, fd) = (libc::PROT_READ | libc::PROT_WRITE, device.as_raw_fd());
            // SAFETY: the kernel chooses the place.
            unsafe { libc::mmap(ptr::null_mut(), 4096, access, libc::MAP_SHARED, fd, at as i64) }
        };
        let bar = map(BAR0);
        assert_ne!(bar, libc::MAP_FAILED);
        device.write_all_at(&[7], BAR0).unwrap();
        // SAFETY: it is the first byte of the page.
        assert_eq!(unsafe { bar.cast::<u8>().read() }, 7);
        assert_eq!(map(CONFIG), libc::MAP_FAILED);
        let mut vendor = [0; 2];
        device.read_exact_at(&mut vendor, CONFIG).unwrap();
        assert_eq!(vendor, [0x36, 0x1b]);
    });
}

#[test]
fn an_interrupt_signals_the_programs_eventfd() {
    on_model("an_interrupt_signals_the_programs_eventfd", || {
        let (container, group) = (open("/dev/vfio/vfio").unwrap(), open("/dev/vfio/1").unwrap());
        let device = device(&container, &group);
        let eventfd = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        // struct vfio_irq_set: an eventfd as the trigger of vector 0 of MSI-X.
        let bind = [24, 4 | 32, 2, 0, 1, eventfd.as_raw_fd()];
        ioctl(&device, 110, bind.as_ptr() as usize).unwrap();
        assert!(eventfd.read().is_err());
        let trigger = [20, 1 | 32, 2, 0, 1];
        ioctl(&device, 110, trigger.as_ptr() as usize).unwrap();
        assert_eq!(eventfd.read().unwrap(), 1);
        let no_eventfd = [24, 4 | 32, 2, 1, 1, container.as_raw_fd()];
        assert_eq!(code(ioctl(&device, 110, no_eventfd.as_ptr() as usize)), Some(libc::EINVAL));
        let not_open = [24, 4 | 32, 2, 1, 1, 999];
        assert_eq!(code(ioctl(&device, 110, not_open.as_ptr() as usize)), Some(libc::EBADF));
    });
}

#[test]
fn wrong_addresses_and_requests_are_errors() {
    on_model("wrong_addresses_and_requests_are_errors", || {
        let group = open("/dev/vfio/1").unwrap();
        assert_eq!(code(ioctl(&group, 103, 8)), Some(libc::EFAULT));
        assert_eq!(code(ioctl(&group, 150, 0)), Some(libc::ENOTTY));
        assert_eq!(code(group.read_at(&mut [0], 0)), Some(libc::EINVAL));
        assert_eq!(code(open("/dev/vfio/77")), Some(libc::ENOENT));
    });
}
