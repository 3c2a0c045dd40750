//! The limit on locked memory.

use std::fs::File;
use std::io::{self, Read};

use super::Error;
use super::error::total;
use crate::backend::raise_locked_memory;

/// Makes sure that this process may lock `bytes` more, before the kernel pins the first page of
/// them. Its limit is raised where it is too low and that is allowed: up to the hard limit, and
/// above with `CAP_SYS_RESOURCE`.
///
/// # Errors
///
/// [`Error::LockedMemory`] where it may not. Where `/proc` does not tell, the kernel has the last
/// word when it maps.
pub fn allow_locked_memory(bytes: u64) -> Result<(), Error> {
    let limits = || read_once("/proc/self/limits");
    allow(bytes, &read_once("/proc/self/status"), limits, raise_locked_memory)
}

/// A file of `/proc`, which gives all of it to one read that has room. Nothing where it cannot be
/// read.
fn read_once(path: &str) -> String {
    let mut buffer = [0; 8192];
    let read = File::open(path).and_then(|mut file| file.read(&mut buffer));
    let bytes = read.ok().and_then(|length| buffer.get(..length));
    String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
}

fn allow(
    bytes: u64,
    status: &str,
    limits: impl FnOnce() -> String,
    raise: impl FnOnce(u64) -> io::Result<()>,
) -> Result<(), Error> {
    let fits = locked_memory_fits(bytes, status, limits);
    let Err(Error::LockedMemory { needed, used, .. }) = fits else {
        return fits;
    };
    let kib = total(needed, used);
    match raise(kib.saturating_mul(1024)) {
        Ok(()) => {
            log::info!(
                "the limit on locked memory of this process is {kib} KiB now (RLIMIT_MEMLOCK)"
            );
            Ok(())
        }
        // The error says what is needed, and the commands that give it.
        Err(error) => {
            log::debug!("setrlimit(RLIMIT_MEMLOCK, {kib} KiB): {error}");
            fits
        }
    }
}

/// `CAP_IPC_LOCK` (linux/capability.h): the kernel does not hold its owner to the limit.
const CAP_IPC_LOCK: u32 = 14;

fn locked_memory_fits(
    bytes: u64,
    status: &str,
    limits: impl FnOnce() -> String,
) -> Result<(), Error> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let capabilities =
        field("CapEff:").and_then(|text| u64::from_str_radix(text, 16).ok()).unwrap_or(0);
    if capabilities >> CAP_IPC_LOCK & 1 == 1 {
        return Ok(());
    }
    let limits = limits();
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    // "unlimited" is no number, and a limit that cannot be read is left to the kernel.
    let limit = limit.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    let used = field("VmLck:")
        .and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok())
        .unwrap_or(0);
    let needed = bytes.div_ceil(1024);
    match limit.map(|bytes| bytes / 1024) {
        Some(limit) if total(needed, used) > limit => {
            Err(Error::LockedMemory { needed, limit, used })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tvmm\nVmLck:\t    1024 kB\nCapEff:\t0000000000000000\n";
    const LIMITS: &str = "Limit                     Soft Limit           Hard Limit           Units     \n\
                          Max locked memory         8388608              8388608              bytes     \n";

    #[test]
    fn a_limit_that_is_too_low_is_told_with_the_value_that_is_needed() {
        let error =
            locked_memory_fits(512 << 20, STATUS, || LIMITS.to_owned()).unwrap_err().to_string();
        for part in [
            "524288 KiB",
            "limit of this process is 8192 KiB",
            "1024 KiB in use",
            "'ulimit -l 525312'",
        ] {
            assert!(error.contains(part), "{part} is not in: {error}");
        }
    }

    #[test]
    fn the_limit_is_raised_to_what_is_needed_where_that_is_allowed() {
        let mut asked = Vec::new();
        let mut allowed = |bytes, errno: Option<i32>| {
            allow(
                bytes,
                STATUS,
                || LIMITS.to_owned(),
                |limit| {
                    asked.push(limit);
                    errno.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
                },
            )
        };
        assert!(allowed(7 << 20, None).is_ok(), "it fits");
        assert!(allowed(512 << 20, None).is_ok());
        let error = allowed(512 << 20, Some(libc::EPERM)).unwrap_err().to_string();
        assert!(error.contains("'LimitMEMLOCK=525312K' in a systemd unit"), "{error}");
        assert!(error.contains("'memlock 525312' in /etc/security/limits.conf"), "{error}");
        assert_eq!(asked, [513 << 20; 2], "once each, and what is in use too");
    }

    #[test]
    fn what_fits_is_let_through() {
        let root = STATUS.replace("CapEff:\t0000000000000000", "CapEff:\t000001ffffffffff");
        let unlimited = LIMITS.replace("8388608 ", "unlimited");
        let limits = || LIMITS.to_owned();
        assert!(locked_memory_fits(7 << 20, STATUS, limits).is_ok());
        assert!(locked_memory_fits((7 << 20) + 1, STATUS, limits).is_err());
        assert!(locked_memory_fits(1 << 40, &root, || panic!("nobody needs them")).is_ok());
        assert!(locked_memory_fits(1 << 40, STATUS, || unlimited).is_ok());
    }

    #[test]
    fn a_file_of_proc_comes_whole_by_one_read() {
        let status = read_once("/proc/self/status");
        assert!(status.starts_with("Name:") && status.contains("CapEff:"), "{status}");
        assert_eq!(read_once("/proc/self/nonexistent"), "");
    }
}
