//! Which system calls each kind of thread may make from just before the guest's first instruction on.
//!
//! The lists are in `lists`. A thread that is started by another has that one's filter, too, so all that a CPU's
//! thread may do is on the main thread's list. A call outside ends the VMM: see `violation`.

mod lists;
mod names;
mod violation;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};
use thiserror::Error;

use lists::Row;

/// What becomes of a call that is not on its thread's list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// It ends the VMM, which names it.
    #[default]
    On,
    /// It is made, and the kernel logs it.
    Log,
    /// There are no lists.
    Off,
}

/// A kind of thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    /// The one that waits for events.
    Main,
    /// Runs a CPU of the guest.
    Vcpu,
    /// Serves the socket of `--control`.
    Control,
}

impl Thread {
    const ALL: [Self; 3] = [Self::Main, Self::Vcpu, Self::Control];

    fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Vcpu => "vcpu",
            Self::Control => "control",
        }
    }
}

/// `--seccomp`: the mode, and, for tests of the lists, calls to be taken from them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seccomp {
    mode: Mode,
    without: Vec<(Thread, &'static str)>,
}

/// Why a value of `--seccomp` is none.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ParseError {
    /// No mode.
    #[error("there is no mode '{0}': there are on, log and off")]
    Mode(String),
    /// What follows the mode is no row of a list.
    #[error(
        "'{0}' is on no list: without=THREAD:CALL takes a call from a thread's list (main, vcpu, control)"
    )]
    Row(String),
}

impl FromStr for Seccomp {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut parts = text.split(',');
        let mode = match parts.next() {
            Some("on") => Mode::On,
            Some("log") => Mode::Log,
            Some("off") => Mode::Off,
            other => return Err(ParseError::Mode(other.unwrap_or_default().to_owned())),
        };
        let without = parts.map(|part| row(part).ok_or_else(|| ParseError::Row(part.to_owned())));
        Ok(Self { mode, without: without.collect::<Result<_, _>>()? })
    }
}

fn row(option: &str) -> Option<(Thread, &'static str)> {
    let (thread, call) = option.strip_prefix("without=")?.split_once(':')?;
    let thread = Thread::ALL.into_iter().find(|known| known.name() == thread)?;
    let row = lists::of(thread).find(|row| row.name == call)?;
    Some((thread, row.name))
}

/// Every row of every list, as `without` has it.
pub fn rows() -> impl Iterator<Item = String> {
    let named = |thread: Thread| {
        lists::of(thread).map(move |row| format!("{}:{}", thread.name(), row.name))
    };
    Thread::ALL.into_iter().flat_map(named)
}

/// The filter of a kind of thread.
pub struct Filter {
    thread: Thread,
    /// None where there are no lists.
    program: Option<BpfProgram>,
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Filter({})", self.thread.name())
    }
}

impl Seccomp {
    /// The filter for threads of a kind. From the first one on, a violation is told.
    ///
    /// # Errors
    ///
    /// Where a list cannot become a program for the kernel, or `sigaction` fails.
    pub fn filter(&self, thread: Thread) -> Result<Filter, crate::Error> {
        let failed = |error: BackendError| crate::Error::Seccomp {
            what: "compiling a filter",
            why: error.to_string(),
        };
        let otherwise = match self.mode {
            Mode::On => SeccompAction::Trap,
            Mode::Log => SeccompAction::Log,
            Mode::Off => {
                return Ok(Filter { thread, program: None });
            }
        };
        let removed = |row: &&Row| self.without.contains(&(thread, row.name));
        let rows = lists::of(thread).filter(|row| !removed(row));
        let program = compile(rows, otherwise).map_err(failed)?;
        Ok(Filter { thread, program: Some(program) })
    }

    /// Has a violation told, and sees to it that this process and what it starts gain no privileges by `execve`.
    pub fn prepare(&self) -> Result<(), crate::Error> {
        match self.mode {
            Mode::On => violation::listen(),
            Mode::Log | Mode::Off => nix::sys::prctl::set_no_new_privs()
                .map_err(crate::Error::system("PR_SET_NO_NEW_PRIVS")),
        }
    }
}

impl Filter {
    /// Holds the calling thread, and those that it starts, to the list. There is no way back.
    pub fn install(&self) -> Result<(), crate::Error> {
        let Some(program) = &self.program else {
            return Ok(());
        };
        violation::is_in(self.thread.name());
        seccompiler::apply_filter(program).map_err(|error| crate::Error::Seccomp {
            what: "installing a filter",
            why: error.to_string(),
        })
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
            // The kernel takes a request as an unsigned int (SYSCALL_DEFINE3(ioctl)).
            let is_it = SeccompCondition::new(
                1,
                SeccompCmpArgLen::Dword,
                SeccompCmpOp::Eq,
                request.into(),
            )?;
            rules.push(SeccompRule::new(vec![is_it])?);
        }
    }
    SeccompFilter::new(rules, otherwise, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}

#[cfg(test)]
mod tests {
    use nix::libc;

    use super::*;

    #[test]
    fn modes_and_rows_are_read_and_what_is_none_is_told() {
        let parsed = |text: &str| text.parse::<Seccomp>();
        let of = |mode, without: &[(Thread, &'static str)]| {
            let without = without.to_vec();
            Ok(Seccomp { mode, without })
        };
        assert_eq!(parsed("on"), of(Mode::On, &[]));
        assert_eq!(parsed("log"), of(Mode::Log, &[]));
        assert_eq!(parsed("off"), of(Mode::Off, &[]));
        let two = [(Thread::Vcpu, "KVM_RUN"), (Thread::Main, "read")];
        assert_eq!(parsed("on,without=vcpu:KVM_RUN,without=main:read"), of(Mode::On, &two));
        let wrong = ["", "no", "on,without=vcpu:openat", "on,without=x:read", "on,read"];
        for text in wrong {
            assert!(parsed(text).is_err(), "{text:?}");
        }
        assert_eq!(
            parsed("of").unwrap_err().to_string(),
            "there is no mode 'of': there are on, log and off"
        );
    }

    #[test]
    fn a_cpus_thread_has_25_calls_at_most_and_the_main_thread_those_too() {
        let calls = |thread| {
            let mut calls: Vec<_> = lists::of(thread).map(|row| row.call).collect();
            calls.sort_unstable();
            calls.dedup();
            calls
        };
        let [main, vcpu] = [Thread::Main, Thread::Vcpu].map(calls);
        assert!(vcpu.len() <= 25, "{}", vcpu.len());
        assert!(vcpu.iter().all(|call| main.contains(call)));
        // What would open something, or run another program, is on no list.
        for thread in Thread::ALL {
            for call in [
                libc::SYS_openat,
                libc::SYS_open,
                libc::SYS_execve,
                libc::SYS_socket,
                libc::SYS_ptrace,
            ] {
                assert!(!calls(thread).contains(&call), "{}", thread.name());
            }
        }
    }

    #[test]
    fn no_row_is_there_twice_and_each_is_what_it_is_called() {
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
