//! `vmm stats SOCKET`: prints the counters of a running VM.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use thiserror::Error;

use super::table;

/// The answer's timeout. A VMM answers at once, unless a slow client is before this one.
const PATIENCE: Duration = Duration::from_secs(5);

/// The counters could not be read.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// No process listens on the socket.
    #[error("{path}: {source}\n  give the socket of a running VMM: vmm --control {path}")]
    Connect { path: PathBuf, source: io::Error },
    /// The answer is not that of a VMM.
    #[error("{path}: {why}")]
    Answer { path: PathBuf, why: String },
}

/// The counters of the VM with the control socket `path`, as a table or as JSON.
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

/// The body of the resource at `path`.
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
        return Err("the VMM closed the connection before its answer was complete".into());
    };
    let body = String::from_utf8_lossy(bytes.get(length..).unwrap_or_default()).into_owned();
    match response.code {
        Some(200) => Ok(body),
        code => Err(format!("status {}: {body}", code.unwrap_or_default())),
    }
}
