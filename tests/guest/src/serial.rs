//! Serial lines of PCI devices, which loop what they send back to themselves (the UART's loopback
//! mode).

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::{Duration, Instant};

use guest::{Report, pattern_byte};
use nix::libc;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

use crate::system::Error;

/// The sysfs folder of terminals.
const TTY: &str = "/sys/class/tty";
/// The bytes of one write: the UART's FIFO has 16, and the line's buffer 4096.
const CHUNK: usize = 64;
/// The loopback mode of a line (linux/termios.h).
const TIOCM_LOOP: libc::c_int = 0x8000;
/// How long the bytes of one write may take: 64 bytes take 67 ms, at 9600 bits a
/// second.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Sends `bytes` on each line of a PCI device and reports whether they came back.
pub fn echo(bytes: u64) -> Result<Vec<Report>, Error> {
    lines()?.iter().map(|line| echo_on(line, bytes)).collect()
}

/// The names of the lines, in their order.
fn lines() -> Result<Vec<String>, Error> {
    let entries = fs::read_dir(TTY).map_err(Error::file("list", TTY))?.flatten();
    let of_pci = entries.filter(|entry| {
        let place = fs::canonicalize(entry.path()).unwrap_or_default();
        place.to_string_lossy().contains("/pci0000:00/")
    });
    let mut names: Vec<String> =
        of_pci.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

fn echo_on(line: &str, bytes: u64) -> Result<Report, Error> {
    let path = format!("/dev/{line}");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
        .open(&path)
        .map_err(Error::file("open", &path))?;
    set_raw(&file).map_err(|errno| Error::file("set up", &path)(errno.into()))?;
    set_loop(&file).map_err(Error::file("loop", &path))?;
    let sent: Vec<u8> = (0..bytes).map(pattern_byte).collect();
    let mut same = true;
    for chunk in sent.chunks(CHUNK) {
        file.write_all(chunk).map_err(Error::file("write", &path))?;
        same &= receive(&mut file, chunk.len()) == chunk;
    }
    Ok(Report::Serial { line: line.to_owned(), bytes, same })
}

fn set_raw(file: &File) -> nix::Result<()> {
    let mut settings = tcgetattr(file)?;
    cfmakeraw(&mut settings);
    tcsetattr(file, SetArg::TCSAFLUSH, &settings)
}

fn set_loop(file: &File) -> std::io::Result<()> {
    let bits: libc::c_int = TIOCM_LOOP | libc::TIOCM_DTR | libc::TIOCM_RTS;
    // SAFETY: the fd is open, and the ioctl reads one int, which lives during the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TIOCMSET, &raw const bits) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Receives as many bytes, or fewer if they take too long.
fn receive(file: &mut File, length: usize) -> Vec<u8> {
    let (begin, mut received) = (Instant::now(), Vec::new());
    let mut buffer = [0; CHUNK];
    while received.len() < length && begin.elapsed() < TIMEOUT {
        match file.read(&mut buffer) {
            Ok(count) => received.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    received
}
