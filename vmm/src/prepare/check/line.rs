//! The result of a check.

use serde::Serialize;
use vfio_passthrough::PciAddress;

/// The status of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    /// The check passed.
    Ok,
    /// A guest can run with a restriction.
    Warning,
    /// No guest can run.
    Fail,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Line {
    /// The name of the check.
    pub(crate) check: &'static str,
    /// The device, if the check is about one.
    pub(crate) device: Option<String>,
    pub(crate) status: Status,
    /// The finding.
    pub(crate) what: String,
    /// The remedy, usually a command.
    pub(crate) remedy: Option<String>,
}

impl Line {
    pub(super) fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self { check, device: None, status: Status::Ok, what: what.into(), remedy: None }
    }

    pub(super) fn warning(
        check: &'static str,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { status: Status::Warning, remedy: Some(remedy.into()), ..Self::ok(check, what) }
    }

    pub(super) fn fail(
        check: &'static str,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { status: Status::Fail, ..Self::warning(check, what, remedy) }
    }

    pub(super) fn of(self, address: PciAddress) -> Self {
        Self { device: Some(address.to_string()), ..self }
    }
}
