//! Prints reports on the console, one line each. Each byte costs an exit or more, so reports are
//! short.

use std::io::{Write as _, stdout};

use guest::{PREFIX, Report};

/// Prints one report. A failed write to the console is ignored: there is no other way to report it.
pub fn send(report: &Report) {
    if let Ok(json) = serde_json::to_string(report) {
        let _ = stdout().write_all(format!("{PREFIX}{json}\n").as_bytes());
    }
}

/// Reports a failure.
pub fn error(what: &str) {
    send(&Report::Error { what: what.to_owned() });
}
