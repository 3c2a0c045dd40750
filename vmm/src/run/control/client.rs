//! Requests of a client: `vmm stats SOCKET`, and those of [`super::plug`].

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{ControlMessage, MsgFlags, getsockopt, sendmsg};
use serde_json::Value;
use thiserror::Error;

use super::table;

/// The answer's timeout. A VMM answers at once, unless a slow client or an added device is before
/// this one.
const PATIENCE: Duration = Duration::from_secs(60);

/// The request failed.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// No process listens on the socket.
    #[error("{path}: {source}\n  give the socket of a running VMM: vmm --control {path}")]
    Connect { path: PathBuf, source: io::Error },
    /// The answer is not that of a VMM.
    #[error("{path}: {why}")]
    Answer { path: PathBuf, why: String },
    /// The VMM refused.
    #[error("{0}")]
    Refused(String),
}

/// The counters of the VM with the control socket `path`, as a table or as JSON.
pub(crate) fn stats(path: &Path, json: bool) -> Result<String, Error> {
    let counters = Client(path).get("vm.counters")?;
    match json {
        true => Ok(format!("{counters:#}\n")),
        false => Ok(table::counters(&counters)),
    }
}

/// The VMM with a control socket.
pub(super) struct Client<'a>(pub(super) &'a Path);

impl Client<'_> {
    /// Reads a resource.
    pub(super) fn get(&self, name: &str) -> Result<Value, Error> {
        self.request("GET", name, &Value::Null, Vec::new())
    }

    /// Requests an action, with files for it. They are closed here before the answer comes: a device
    /// that the VMM closes stays open as long as another process has its file.
    pub(super) fn put(&self, name: &str, body: &Value, files: Vec<File>) -> Result<Value, Error> {
        self.request("PUT", name, body, files)
    }

    /// The process that listens on the socket (SO_PEERCRED of unix(7)).
    pub(super) fn pid(&self) -> Result<i32, Error> {
        let connect = |source| Error::Connect { path: self.0.to_owned(), source };
        let stream = UnixStream::connect(self.0).map_err(connect)?;
        let peer = getsockopt(&stream, PeerCredentials);
        peer.map(|peer| peer.pid()).map_err(|errno| connect(errno.into()))
    }

    fn request(
        &self,
        method: &str,
        name: &str,
        body: &Value,
        files: Vec<File>,
    ) -> Result<Value, Error> {
        let path = self.0.to_owned();
        let connect = |source| Error::Connect { path: path.clone(), source };
        let stream = UnixStream::connect(self.0).map_err(connect)?;
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let head = format!(
            "{method} /api/v1/{name} HTTP/1.1\r\nHost: vmm\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        );
        let answer = ask(&stream, &[head, body].concat(), files);
        let (status, text) = answer.map_err(|why| Error::Answer { path: path.clone(), why })?;
        match status {
            200 => serde_json::from_str(&text)
                .map_err(|error| Error::Answer { path, why: error.to_string() }),
            204 => Ok(Value::Null),
            409 | 422 => Err(Error::Refused(error_in(&text).unwrap_or(text))),
            _ => Err(Error::Answer { path, why: format!("status {status}: {text}") }),
        }
    }
}

/// The text of an error's body.
fn error_in(body: &str) -> Option<String> {
    let body: Value = serde_json::from_str(body).ok()?;
    body.get("error")?.as_str().map(str::to_owned)
}

/// Sends a request, and returns the status and the body of its answer.
fn ask(mut stream: &UnixStream, request: &str, files: Vec<File>) -> Result<(u16, String), String> {
    let failed = |error: io::Error| error.to_string();
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    let sent = send_with(stream, request.as_bytes(), &files).map_err(failed)?;
    drop(files);
    stream.write_all(request.as_bytes().get(sent..).unwrap_or_default()).map_err(failed)?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).map_err(failed)?;
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let head = response.parse(&bytes).map_err(|error| error.to_string())?;
    let httparse::Status::Complete(length) = head else {
        return Err("the VMM closed the connection before its answer was complete".into());
    };
    let body = String::from_utf8_lossy(bytes.get(length..).unwrap_or_default()).into_owned();
    Ok((response.code.unwrap_or_default(), body))
}

/// Sends the first bytes, with the files.
fn send_with(stream: &UnixStream, bytes: &[u8], files: &[File]) -> io::Result<usize> {
    let fds: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let rights = if fds.is_empty() { &[][..] } else { &rights };
    let flags = MsgFlags::MSG_NOSIGNAL;
    Ok(sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(bytes)], rights, flags, None)?)
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixListener;
    use std::thread;

    use serde_json::json;

    use super::*;

    #[test]
    fn the_client_closes_its_files_before_the_answer() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("vm.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (mut watched, passed) = UnixStream::pair().unwrap();
        watched.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let vmm = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // This read does not accept the files, so the kernel closes their copies.
            let _ = stream.read(&mut [0; 4096]).unwrap();
            let is_closed = watched.read(&mut [0]).is_ok_and(|count| count == 0);
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
            is_closed
        });
        let files = vec![File::from(OwnedFd::from(passed))];
        Client(&socket).put("vm.add-device", &json!({}), files).unwrap();
        assert!(vmm.join().unwrap());
    }
}
