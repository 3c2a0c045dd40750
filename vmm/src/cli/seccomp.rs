//! `--seccomp`: the mode, and calls to remove from the lists.

use std::str::FromStr;

use thiserror::Error;

use crate::config::{Seccomp, SeccompMode, Thread};
use crate::host::seccomp;

/// A value of `--seccomp` that is not valid.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SeccompError {
    /// The mode does not exist.
    #[error("unknown mode '{0}': the modes are on, log and off")]
    Mode(String),
    /// The option does not name a row of a list.
    #[error(
        "'{0}' is on no list: without=THREAD:CALL removes a call from the list of a thread (main, vcpu, \
         control)"
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
    fn parses_modes_and_rows_and_names_invalid_ones() {
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
            "unknown mode 'of': the modes are on, log and off"
        );
    }
}
