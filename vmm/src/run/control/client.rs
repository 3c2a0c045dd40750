//! `vmm stats SOCKET`: the counters of a VM that runs.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use thiserror::Error;

use super::table;

/// A VMM answers at once, unless another client dawdles.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why there are no counters.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// Nobody listens there.
    #[error("{path}: {source}\n  give the socket of a VMM that runs: vmm --control {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It listens, and does not answer as a VMM does.
    #[error("{path}: {why}")]
    Answer {
        /// The socket.
        path: PathBuf,
        /// What it did.
        why: String,
    },
}

/// The counters of the VM whose control socket is at `path`: a table, or as they come.
pub(crate) fn stats(path: &Path, json: bool) -> Result<String, Error> {
    let connect = |source| Error::Connect { path: path.to_owned(), source };
    let stream = UnixStream::connect(path).map_err(connect)?;
    let answer = |why: String| Error::Answer { path: path.to_owned(), why };
    let body = ask(&stream, "/api/v1/vm.counters").map_err(&answer)?;
    let counters: Value = serde_json::from_str(&body).map_err(|error| answer(error.to_string()))?;
    let pretty = || serde_json::to_string_pretty(&counters).map(|text| text + "\n");
    match json {
        true => pretty().map_err(|error| answer(error.to_string())),
        false => Ok(table::counters(&counters)),
    }
}

/// The body of what is at `path`.
fn ask(mut stream: &UnixStream, path: &str) -> Result<String, String> {
    let failed = |error: io::Error| error.to_string();
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: vmm\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).map_err(failed)?;
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let head = response.parse(&bytes).map_err(|error| error.to_string())?;
    let httparse::Status::Complete(length) = head else {
        return Err("it closed before it had answered".into());
    };
    let body = String::from_utf8_lossy(bytes.get(length..).unwrap_or_default()).into_owned();
    match response.code {
        Some(200) => Ok(body),
        code => Err(format!("status {}: {body}", code.unwrap_or_default())),
    }
}
