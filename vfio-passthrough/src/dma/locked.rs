//! The limit on locked memory.

use std::fs;

use super::Error;
use super::error::total;

/// Checks that this process may lock `bytes` more, before the kernel pins the first page of them.
///
/// # Errors
///
/// [`Error::LockedMemory`] where it may not. Where `/proc` does not tell, the kernel has the last word when
/// it maps.
pub fn check_locked_memory(bytes: u64) -> Result<(), Error> {
    let read = |name: &str| fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
    locked_memory_fits(bytes, &read("status"), &read("limits"))
}

/// `CAP_IPC_LOCK` (linux/capability.h): the kernel does not hold its owner to the limit.
const CAP_IPC_LOCK: u32 = 14;

fn locked_memory_fits(bytes: u64, status: &str, limits: &str) -> Result<(), Error> {
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    let capabilities = field("CapEff:")
        .and_then(|text| u64::from_str_radix(text, 16).ok())
        .unwrap_or(0);
    if capabilities >> CAP_IPC_LOCK & 1 == 1 {
        return Ok(());
    }
    let limit = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max locked memory"));
    // "unlimited" is no number, and a limit that cannot be read is left to the kernel.
    let limit = limit.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    let used = field("VmLck:")
        .and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok())
        .unwrap_or(0);
    let needed = bytes.div_ceil(1024);
    match limit.map(|bytes| bytes / 1024) {
        Some(limit) if total(needed, used) > limit => Err(Error::LockedMemory { needed, limit, used }),
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
        let error = locked_memory_fits(512 << 20, STATUS, LIMITS)
            .unwrap_err()
            .to_string();
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
    fn what_fits_is_let_through() {
        let root = STATUS.replace("CapEff:\t0000000000000000", "CapEff:\t000001ffffffffff");
        let unlimited = LIMITS.replace("8388608 ", "unlimited");
        assert!(locked_memory_fits(7 << 20, STATUS, LIMITS).is_ok());
        assert!(locked_memory_fits((7 << 20) + 1, STATUS, LIMITS).is_err());
        assert!(locked_memory_fits(1 << 40, &root, LIMITS).is_ok());
        assert!(locked_memory_fits(1 << 40, STATUS, &unlimited).is_ok());
    }
}
