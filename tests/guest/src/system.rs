//! The system around the init: mounts, the command line, memory and CPUs, and the end.

use std::fs;
use std::io;
use std::io::stdout;

use guest::{Ending, Report};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::termios::tcdrain;
use nix::unistd::sync;
use thiserror::Error;

/// Why a step failed.
#[derive(Debug, Error)]
pub enum Error {
    #[error("{action} {path}: {source}")]
    File { action: &'static str, path: String, source: io::Error },
    #[error("guest.do: unknown or malformed step {0:?}")]
    Plan(String),
    #[error("disks are missing: {found} of {expected} appeared")]
    NoDisk { found: usize, expected: usize },
    #[error("{expected} {what} were expected, and there are {found}")]
    Count { what: &'static str, found: usize, expected: usize },
    #[error("network: {action}: {errno}")]
    Net { action: String, errno: nix::Error },
}

impl Error {
    /// Makes an error of an action on a file, for `map_err`.
    pub fn file(action: &'static str, path: &str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }
}

/// Mounts the kernel's file systems.
pub fn mount_all() -> Result<(), Error> {
    for (kind, target) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        fs::create_dir_all(target).map_err(Error::file("create", target))?;
        match mount(Some(kind), target, Some(kind), MsFlags::empty(), None::<&str>) {
            // A kernel with CONFIG_DEVTMPFS_MOUNT has mounted /dev.
            Ok(()) | Err(nix::Error::EBUSY) => {}
            Err(errno) => return Err(Error::file("mount", target)(errno.into())),
        }
    }
    Ok(())
}

/// Reads a file of procfs or sysfs.
pub fn read(path: &str) -> Result<String, Error> {
    fs::read_to_string(path).map_err(Error::file("read", path))
}

/// The kernel's command line.
pub fn command_line() -> Result<String, Error> {
    read("/proc/cmdline")
}

/// Reports uptime, CPUs and memory.
pub fn look() -> Result<Report, Error> {
    Ok(Report::Init {
        uptime_ns: uptime_ns(&read("/proc/uptime")?),
        cpus: read("/sys/devices/system/cpu/online")?.trim().to_owned(),
        memory_kib: memory_kib(&read("/proc/meminfo")?),
    })
}

/// Parses `/proc/uptime`, which begins with seconds with two decimals.
fn uptime_ns(text: &str) -> u64 {
    let digits: String =
        text.chars().take_while(|c| !c.is_whitespace()).filter(char::is_ascii_digit).collect();
    digits.parse::<u64>().unwrap_or_default().saturating_mul(10_000_000)
}

fn memory_kib(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|rest| rest.split_whitespace().next())
        .and_then(|n| n.parse().ok())
        .unwrap_or_default()
}

/// Ends the machine. It returns only for [`Ending::Panic`]: the kernel panics when its init exits.
pub fn end(ending: Ending) {
    sync();
    // The kernel's last messages overtake the output that its terminal still buffers, and would end
    // up within the last report. So wait until that is printed.
    let _ = tcdrain(stdout());
    let mode = match ending {
        Ending::Off => RebootMode::RB_POWER_OFF,
        Ending::Reboot => RebootMode::RB_AUTOBOOT,
        Ending::Panic => return,
    };
    // It fails only without CAP_SYS_BOOT, which the init has.
    let _ = reboot(mode);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_uptime_as_nanoseconds() {
        assert_eq!(uptime_ns("1.25 0.90\n"), 1_250_000_000);
        assert_eq!(uptime_ns(""), 0);
    }

    #[test]
    fn parses_the_total_memory() {
        assert_eq!(memory_kib("MemTotal:         491520 kB\nMemFree: 1 kB\n"), 491_520);
    }
}
