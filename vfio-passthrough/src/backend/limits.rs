//! The limit on locked memory of this process (RLIMIT_MEMLOCK).

use std::io;

/// Raises the limit to `bytes`, if it is lower. Each process may raise it up to its hard limit.
/// Raising the hard limit requires `CAP_SYS_RESOURCE` (setrlimit(2)).
///
/// # Errors
///
/// `EPERM` if this process may not raise the limit so far.
pub(crate) fn raise_locked_memory(bytes: u64) -> io::Result<()> {
    let now = limit()?;
    if now.rlim_cur >= bytes {
        return Ok(());
    }
    set(libc::rlimit { rlim_cur: bytes, rlim_max: now.rlim_max.max(bytes) })
}

fn limit() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one struct of this type, which lives until the call returns.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    checked(result).map(|()| limit)
}

fn set(limit: libc::rlimit) -> io::Result<()> {
    // SAFETY: the kernel reads one struct of this type, which lives until the call returns.
    checked(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) })
}

fn checked(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// This changes a limit of the whole process. No other test here locks memory.
    #[test]
    fn any_process_can_raise_the_limit_up_to_its_hard_limit() {
        let before = limit().unwrap();
        let low = 64 << 10;
        let wanted = before.rlim_max.min(1 << 40);
        assert!(wanted > low, "the hard limit is {}", before.rlim_max);
        set(libc::rlimit { rlim_cur: low, ..before }).unwrap();
        raise_locked_memory(wanted).unwrap();
        let raised = limit().unwrap();
        assert_eq!((raised.rlim_cur, raised.rlim_max), (wanted, before.rlim_max));
        raise_locked_memory(low).unwrap();
        assert_eq!(limit().unwrap().rlim_cur, wanted, "the limit is never lowered");
        set(before).unwrap();
    }
}
