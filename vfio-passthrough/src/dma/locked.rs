//! The limit on locked memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::Error;
use super::error::total;
use crate::backend::raise_locked_memory;

/// Checks that this process may lock `bytes` more bytes of memory, before the kernel pins the first
/// page. If its limit (RLIMIT_MEMLOCK) is too low, it is raised: up to the hard limit, or above
/// with `CAP_SYS_RESOURCE`.
///
/// # Errors
///
/// [`Error::LockedMemory`] if the limit is too low and cannot be raised. If `/proc` cannot be read,
/// this succeeds, and the kernel checks the limit when it maps.
pub fn allow_locked_memory(bytes: u64) -> Result<(), Error> {
    let limits = || read_once("/proc/self/limits");
    allow(bytes, &read_once("/proc/self/status"), limits, raise_locked_memory)
}

/// The limit on locked memory of this process, for a later time at which it may open no file: a VMM
/// that gets its first device while its guest runs.
#[derive(Debug, Default)]
pub struct LockedMemoryLimit {
    /// `/proc/self/status` and `/proc/self/limits`; `None`: the kernel checks the limit when it maps.
    files: Option<(File, File)>,
}

impl LockedMemoryLimit {
    /// Opens the files of `/proc` that have the limit. If that fails, [`check`](Self::check)
    /// succeeds.
    pub fn open() -> Self {
        let open = |name| File::open(Path::new("/proc/self").join(name)).ok();
        Self { files: open("status").zip(open("limits")) }
    }

    /// Checks that this process may lock `bytes` more bytes of memory, by pread(2) only. It raises
    /// nothing.
    ///
    /// # Errors
    ///
    /// [`Error::LockedMemory`] if the limit is too low.
    pub fn check(&self, bytes: u64) -> Result<(), Error> {
        match &self.files {
            Some((status, limits)) => {
                locked_memory_fits(bytes, &read_at(status), || read_at(limits))
            }
            None => Ok(()),
        }
    }
}

/// Reads an open file of `/proc` by one call.
fn read_at(file: &File) -> String {
    let mut buffer = [0; 8192];
    let length = file.read_at(&mut buffer, 0).unwrap_or(0);
    String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned()
}

/// Reads a file of `/proc` by one call. The text is empty if the file cannot be read.
fn read_once(path: &str) -> String {
    File::open(path).map(|file| read_at(&file)).unwrap_or_default()
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
                "raised this process's limit on locked memory to {kib} KiB (RLIMIT_MEMLOCK)"
            );
            Ok(())
        }
        // The returned error names the commands that raise the limit.
        Err(error) => {
            log::debug!("setrlimit(RLIMIT_MEMLOCK, {kib} KiB): {error}");
            fits
        }
    }
}

/// `CAP_IPC_LOCK` (linux/capability.h): the limit does not apply to a process that has it.
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
    // "unlimited" is not a number. A limit that cannot be read is left to the kernel.
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
    use std::io::Write as _;

    use super::*;

    const STATUS: &str = "Name:\tvmm\nVmLck:\t    1024 kB\nCapEff:\t0000000000000000\n";
    const LIMITS: &str = "Limit                Soft Limit       Hard Limit       Units     \n\
                          Max locked memory    8388608          8388608          bytes     \n";

    #[test]
    fn reports_the_needed_value_if_the_limit_is_too_low() {
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
    fn raises_the_limit_to_the_needed_value_if_allowed() {
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
        assert_eq!(asked, [513 << 20; 2], "each call asks once, and includes the memory in use");
    }

    #[test]
    fn accepts_sizes_within_the_limit() {
        let root = STATUS.replace("CapEff:\t0000000000000000", "CapEff:\t000001ffffffffff");
        let unlimited = LIMITS.replace("8388608 ", "unlimited");
        let limits = || LIMITS.to_owned();
        assert!(locked_memory_fits(7 << 20, STATUS, limits).is_ok());
        assert!(locked_memory_fits((7 << 20) + 1, STATUS, limits).is_err());
        assert!(locked_memory_fits(1 << 40, &root, || panic!("the limits are not needed")).is_ok());
        assert!(locked_memory_fits(1 << 40, STATUS, || unlimited).is_ok());
    }

    #[test]
    fn reads_a_whole_proc_file_by_one_call() {
        let status = read_once("/proc/self/status");
        assert!(status.starts_with("Name:") && status.contains("CapEff:"), "{status}");
        assert_eq!(read_once("/proc/self/nonexistent"), "");
    }

    #[test]
    fn a_limit_that_is_open_is_read_again_each_time() {
        let written = |name: &str, text: &str| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(text.as_bytes()).unwrap_or_else(|error| panic!("{name}: {error}"));
            file
        };
        let (status, limits) = (written("status", STATUS), written("limits", LIMITS));
        let limit = LockedMemoryLimit { files: Some((status, limits.try_clone().unwrap())) };
        let size = 512 << 20;
        assert!(matches!(limit.check(size), Err(Error::LockedMemory { needed: 524_288, .. })));
        limits.write_at(LIMITS.replace("8388608", "unlimited").as_bytes(), 0).unwrap();
        limit.check(size).unwrap();
        LockedMemoryLimit::default().check(u64::MAX).unwrap();
        assert!(LockedMemoryLimit::open().files.is_some());
    }
}
