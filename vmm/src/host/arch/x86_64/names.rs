//! Names of the system calls that only x86-64 has, of those that this VMM may be built for
//! (arch/x86/entry/syscalls/syscall_64.tbl).

use crate::host::seccomp::row::names;

/// Numbers and names.
#[rustfmt::skip]
pub(crate) const NAMES: &[(i64, &str)] = names! {
    SYS_open SYS_stat SYS_lstat SYS_poll SYS_access SYS_pipe SYS_select SYS_dup2 SYS_pause
    SYS_alarm SYS_fork SYS_vfork SYS_getdents SYS_rename SYS_mkdir SYS_rmdir SYS_creat SYS_link
    SYS_unlink SYS_symlink SYS_readlink SYS_chmod SYS_chown SYS_lchown SYS_getpgrp SYS_utime
    SYS_mknod SYS_uselib SYS_ustat SYS_sysfs SYS_modify_ldt SYS__sysctl SYS_arch_prctl SYS_iopl
    SYS_ioperm SYS_getpmsg SYS_putpmsg SYS_afs_syscall SYS_tuxcall SYS_security SYS_time
    SYS_set_thread_area SYS_get_thread_area SYS_epoll_create SYS_epoll_ctl_old
    SYS_epoll_wait_old SYS_epoll_wait SYS_utimes SYS_vserver SYS_inotify_init SYS_futimesat
    SYS_signalfd SYS_eventfd SYS_fchmodat2
};

#[cfg(test)]
mod tests {
    use crate::host::seccomp::names::of;

    #[test]
    fn every_call_has_its_name() {
        let cases = [(0, "read"), (16, "ioctl"), (257, "openat"), (435, "clone3"), (462, "mseal")];
        cases.iter().for_each(|(number, name)| assert_eq!(of(*number), Some(*name)));
        // The table has the same gaps as the kernel's.
        let unknown: Vec<_> = (0..=450).filter(|number| of(*number).is_none()).collect();
        let expected: Vec<_> = [174, 177, 178, 333].into_iter().chain(335..=423).collect();
        assert_eq!((unknown, of(-1)), (expected, None));
    }
}
