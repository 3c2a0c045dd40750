//! This process's limit on locked memory.

use std::io;

/// Raises the limit to `bytes`, if it is lower: as far as the hard limit anybody may, and the hard
/// limit itself with `CAP_SYS_RESOURCE` (setrlimit(2)).
///
/// # Errors
///
/// `EPERM` where this process may not.
pub(crate) fn raise_locked_memory(bytes: u64) -> io::Result<()> {
    let now = limit()?;
    if now.rlim_cur >= bytes {
        return Ok(());
    }
    set(libc::rlimit { rlim_cur: bytes, rlim_max: now.rlim_max.max(bytes) })
}

fn limit() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one struct of this type, which is lent to it.
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

    /// A limit of this process's: nothing else here locks memory.
    #[test]
    fn what_is_below_the_hard_limit_anybody_may_have() {
        let before = limit().unwrap();
        let low = 64 << 10;
        let wanted = before.rlim_max.min(1 << 40);
        assert!(wanted > low, "the hard limit is {}", before.rlim_max);
        set(libc::rlimit { rlim_cur: low, ..before }).unwrap();
        raise_locked_memory(wanted).unwrap();
        let raised = limit().unwrap();
        assert_eq!((raised.rlim_cur, raised.rlim_max), (wanted, before.rlim_max));
        raise_locked_memory(low).unwrap();
        assert_eq!(limit().unwrap().rlim_cur, wanted, "never lowered");
        set(before).unwrap();
    }
}
