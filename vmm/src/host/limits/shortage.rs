//! What the host has too little of.

use super::rlimits::Kind;
use crate::error::Error;

/// The host has too little of something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shortage {
    /// What is needed, and what the host has.
    pub(crate) what: String,
    pub(crate) remedy: String,
}

impl From<Shortage> for Error {
    fn from(Shortage { what, remedy }: Shortage) -> Self {
        Self::Limit { what, remedy }
    }
}

/// Checks a hard limit. A process without this limit passes.
pub(super) fn within(
    kind: Kind,
    limits: &str,
    needed: u64,
    what: impl FnOnce(u64) -> String,
) -> Result<(), Shortage> {
    match kind.of(limits).filter(|limit| limit.hard < needed) {
        None => Ok(()),
        Some(limit) => Err(Shortage {
            what: format!("{} ({})", what(limit.hard), kind.name()),
            remedy: kind.remedy(needed),
        }),
    }
}
