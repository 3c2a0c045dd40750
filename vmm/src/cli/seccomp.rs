//! `--seccomp`: the mode, and calls to be taken from the lists.

use std::str::FromStr;

use thiserror::Error;

use crate::config::{Seccomp, SeccompMode, Thread};
use crate::host::seccomp;

/// Why a value of `--seccomp` is none.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SeccompError {
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
    type Err = SeccompError;

    fn from_str(text: &str) -> Result<Self, SeccompError> {
        let mut parts = text.split(',');
        let mode = match parts.next() {
            Some("on") => SeccompMode::On,
            Some("log") => SeccompMode::Log,
            Some("off") => SeccompMode::Off,
            other => return Err(SeccompError::Mode(other.unwrap_or_default().to_owned())),
        };
        let without = parts.map(|part| row(part).ok_or_else(|| SeccompError::Row(part.to_owned())));
        Ok(Self { mode, without: without.collect::<Result<_, _>>()? })
    }
}

fn row(option: &str) -> Option<(Thread, &'static str)> {
    let (thread, call) = option.strip_prefix("without=")?.split_once(':')?;
    let thread = Thread::ALL.into_iter().find(|known| known.name() == thread)?;
    Some((thread, seccomp::row(thread, call)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_and_rows_are_read_and_what_is_none_is_told() {
        let parsed = |text: &str| text.parse::<Seccomp>();
        let of = |mode, without: &[(Thread, &'static str)]| {
            let without = without.to_vec();
            Ok(Seccomp { mode, without })
        };
        assert_eq!(parsed("on"), of(SeccompMode::On, &[]));
        assert_eq!(parsed("log"), of(SeccompMode::Log, &[]));
        assert_eq!(parsed("off"), of(SeccompMode::Off, &[]));
        let two = [(Thread::Vcpu, "KVM_RUN"), (Thread::Main, "read")];
        assert_eq!(parsed("on,without=vcpu:KVM_RUN,without=main:read"), of(SeccompMode::On, &two));
        let wrong = ["", "no", "on,without=vcpu:openat", "on,without=x:read", "on,read"];
        for text in wrong {
            assert!(parsed(text).is_err(), "{text:?}");
        }
        assert_eq!(
            parsed("of").unwrap_err().to_string(),
            "there is no mode 'of': there are on, log and off"
        );
    }
}
