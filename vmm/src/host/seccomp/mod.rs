//! Restricts the system calls of each thread, from just before the guest's first instruction.
//!
//! The lists are in `lists`. A thread inherits the filter of the thread that starts it, so the main
//! thread's list contains the list of the vCPU threads. A call outside the list ends the VMM: see
//! `violation`.

mod lists;
pub(in crate::host) mod names;
pub(in crate::host) mod row;
mod violation;

use std::collections::BTreeMap;
use std::fmt;

use row::Row;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule,
};

use crate::config::{Seccomp, SeccompMode, Thread};
use crate::error::Error;
use crate::host::arch;

/// The row named `call` on the list of `thread`.
pub(crate) fn row(thread: Thread, call: &str) -> Option<&'static str> {
    lists::of(thread).find(|row| row.name == call).map(|row| row.name)
}

/// Every row of every list, in the format of `without`.
pub fn rows() -> impl Iterator<Item = String> {
    let named = |thread: Thread| {
        lists::of(thread).map(move |row| format!("{}:{}", thread.name(), row.name))
    };
    Thread::ALL.into_iter().flat_map(named)
}

/// The filter of a thread.
pub(crate) struct Filter {
    thread: Thread,
    /// `None` if filters are off.
    program: Option<BpfProgram>,
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Filter({})", self.thread.name())
    }
}

/// Installs the signal handler that reports violations, and ensures that this process and its
/// children gain no privileges by `execve`.
pub fn prepare(seccomp: &Seccomp) -> Result<(), Error> {
    match seccomp.mode {
        SeccompMode::On => violation::listen(),
        SeccompMode::Log | SeccompMode::Off => {
            nix::sys::prctl::set_no_new_privs().map_err(Error::system("PR_SET_NO_NEW_PRIVS"))
        }
    }
}

/// Restricts the calling thread, and the threads that it starts, to the list of `thread`.
pub fn restrict(seccomp: &Seccomp, thread: Thread) -> Result<(), Error> {
    Filter::new(seccomp, thread)?.install()
}

impl Filter {
    /// Compiles the filter for `thread`.
    ///
    /// # Errors
    ///
    /// [`Error::Seccomp`] if the list does not compile.
    pub(crate) fn new(seccomp: &Seccomp, thread: Thread) -> Result<Self, Error> {
        let failed = |error: BackendError| Error::Seccomp {
            what: "compiling a filter",
            why: error.to_string(),
        };
        let otherwise = match seccomp.mode {
            SeccompMode::On => SeccompAction::Trap,
            SeccompMode::Log => SeccompAction::Log,
            SeccompMode::Off => return Ok(Self { thread, program: None }),
        };
        let removed = |row: &&Row| seccomp.without.contains(&(thread, row.name));
        let rows = lists::of(thread).filter(|row| !removed(row));
        let program = compile(rows, otherwise).map_err(failed)?;
        Ok(Self { thread, program: Some(program) })
    }

    /// Restricts the calling thread, and the threads that it starts. The restriction is permanent.
    pub(crate) fn install(&self) -> Result<(), Error> {
        let Some(program) = &self.program else {
            return Ok(());
        };
        violation::set_list(self.thread.name());
        seccompiler::apply_filter(program)
            .map_err(|error| Error::Seccomp { what: "installing a filter", why: error.to_string() })
    }
}

fn compile<'a>(
    rows: impl Iterator<Item = &'a Row>,
    otherwise: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    let mut rules = BTreeMap::<i64, Vec<SeccompRule>>::new();
    for row in rows {
        let rules = rules.entry(row.call).or_default();
        if let Some(request) = row.request {
            // The kernel reads the request as an unsigned int (SYSCALL_DEFINE3(ioctl)).
            let is_it = SeccompCondition::new(
                1,
                SeccompCmpArgLen::Dword,
                SeccompCmpOp::Eq,
                request.into(),
            )?;
            rules.push(SeccompRule::new(vec![is_it])?);
        }
    }
    SeccompFilter::new(rules, otherwise, SeccompAction::Allow, arch::SECCOMP)?.try_into()
}

#[cfg(test)]
mod tests {
    use nix::libc;

    use super::*;

    #[test]
    fn a_vcpu_thread_has_at_most_25_calls_and_the_main_thread_has_them_too() {
        let calls = |thread| {
            let mut calls: Vec<_> = lists::of(thread).map(|row| row.call).collect();
            calls.sort_unstable();
            calls.dedup();
            calls
        };
        let [main, vcpu] = [Thread::Main, Thread::Vcpu].map(calls);
        assert!(vcpu.len() <= 25, "{}", vcpu.len());
        assert!(vcpu.iter().all(|call| main.contains(call)));
        // No list allows a call that opens a file or runs another program.
        for thread in Thread::ALL {
            for call in [libc::SYS_openat, libc::SYS_execve, libc::SYS_socket, libc::SYS_ptrace] {
                assert!(!calls(thread).contains(&call), "{}", thread.name());
            }
            assert!(lists::of(thread).all(|row| row.name != "open"), "{}", thread.name());
        }
    }

    #[test]
    fn no_row_occurs_twice_and_each_name_matches_its_number() {
        for thread in Thread::ALL {
            let mut rows: Vec<_> = lists::of(thread).map(|row| (row.call, row.request)).collect();
            let count = rows.len();
            rows.sort_unstable();
            rows.dedup();
            assert_eq!(rows.len(), count, "{}", thread.name());
            let calls = lists::of(thread).filter(|row| row.request.is_none());
            calls.for_each(|row| assert_eq!(names::of(row.call), Some(row.name)));
        }
    }
}
