//! What a check found.

use serde::Serialize;
use vfio_passthrough::PciAddress;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    /// As it should be.
    Ok,
    /// A guest can run; something should be known.
    Warning,
    /// No guest can run so.
    Fail,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Line {
    /// What was looked at.
    pub(crate) check: &'static str,
    /// Of which device, if of one.
    pub(crate) device: Option<String>,
    /// How it came out.
    pub(crate) status: Status,
    /// What was found.
    pub(crate) what: String,
    /// What mends it: mostly a command.
    pub(crate) mend: Option<String>,
}

impl Line {
    pub(super) fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self { check, device: None, status: Status::Ok, what: what.into(), mend: None }
    }

    pub(super) fn warning(
        check: &'static str,
        what: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self { status: Status::Warning, mend: Some(mend.into()), ..Self::ok(check, what) }
    }

    pub(super) fn fail(
        check: &'static str,
        what: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self { status: Status::Fail, ..Self::warning(check, what, mend) }
    }

    pub(super) fn of(self, address: PciAddress) -> Self {
        Self { device: Some(address.to_string()), ..self }
    }
}
