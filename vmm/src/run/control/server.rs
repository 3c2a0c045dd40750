//! The socket of `--control`: a thread answers one request after another.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use serde_json::json;

use super::guest::{Control, NotRunning, Refused};
use super::http::{self, Asked, Response};
use super::received::Received;
use crate::config::Thread;
use crate::error::Error;
use crate::host::landlock;
use crate::host::seccomp::Filter;

/// The timeout of a client's request, and of its reads of the answer. Other clients wait meanwhile.
const PATIENCE: Duration = Duration::from_secs(1);
const STACK: usize = 128 << 10;

/// The socket and its thread. Dropping the value ends the thread and removes the socket.
pub(crate) struct Server {
    path: PathBuf,
    /// The thread polls the other end and exits when this end is closed.
    end: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens at `path`, only for the user of this process. Replaces a stale socket. The thread is
    /// restricted to `filter` and to open files.
    pub(crate) fn start(
        path: &Path,
        control: &Arc<Control>,
        filter: Filter,
    ) -> Result<Self, Error> {
        let failed = |source| Error::Control { path: path.to_owned(), source };
        let listener = listen(path).map_err(failed)?;
        let (end, ended) = UnixStream::pair().map_err(failed)?;
        let mut server = Self { path: path.to_owned(), end: Some(end), thread: None };
        let control = Arc::clone(control);
        let thread = Builder::new().name("control".into()).stack_size(STACK);
        let held =
            move || landlock::restrict(Thread::Control, None).and_then(|()| filter.install());
        let serving = thread.spawn(move || match held() {
            Ok(()) => serve(&listener, &ended, &control),
            Err(error) => log::error!("the control socket does not answer: {error}"),
        });
        server.thread = Some(serving.map_err(failed)?);
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("the control socket's thread panicked");
        }
        // Ignore an error: another process may have removed the socket.
        let _ = fs::remove_file(&self.path);
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    let is_stale = || {
        let connected = UnixStream::connect(path);
        connected.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    };
    if is_socket && is_stale() {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    // No client that connected before this call has been answered yet.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn serve(listener: &UnixListener, ended: &UnixStream, control: &Control) {
    loop {
        let ejected = control.ejected();
        let waited = [listener.as_fd(), ended.as_fd(), ejected.as_fd()];
        let mut fds = waited.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let reminder = control.reminder().and_then(|after| PollTimeout::try_from(after).ok());
        let timeout = reminder.unwrap_or(PollTimeout::NONE);
        match poll(&mut fds, timeout) {
            Ok(0) => control.remind(),
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => {
                return log::error!("the control socket no longer answers: poll: {error}");
            }
        }
        let [_, end, ejections] = fds;
        if end.any() == Some(true) {
            return;
        }
        if ejections.any() == Some(true) {
            control.finish_ejections();
        }
        if let Ok((stream, _)) = listener.accept() {
            if let Err(error) = answer_one(&stream, control) {
                log::info!("a client of the control socket disconnected: {error}");
            }
        }
    }
}

/// A stream that writes with `send`. The standard library calls `write` or `send`, depending on its
/// version; the test of the seccomp lists expects one of them.
struct Sent<'a>(&'a UnixStream);

impl Write for Sent<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        Ok(send(self.0.as_raw_fd(), data, MsgFlags::MSG_NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn answer_one(stream: &UnixStream, control: &Control) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut received = Received::new(stream, PATIENCE);
    let response = match http::read(&mut received)? {
        Ok(asked) => answer(&asked, received.into_files(), control),
        Err(response) => response,
    };
    response.write(Sent(stream))
}

/// The response to a request with its body and the client's files, if the guest runs.
type Action = fn(&Control, &[u8], Vec<File>) -> Result<Response, NotRunning>;

/// All requests, as `openapi.json` describes them.
pub(crate) const ROUTES: [(&str, &str, Action); 10] = [
    ("GET", "/api/v1/vmm.ping", |_, _, _| {
        Ok(found(&json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
        })))
    }),
    ("GET", "/api/v1/vm.info", |control, _, _| {
        let state = control.state();
        let configuration = control.configuration();
        Ok(found(&json!({ "state": state, "configuration": configuration })))
    }),
    ("GET", "/api/v1/vm.devices", |control, _, _| {
        let configuration = control.configuration().ok_or(NotRunning)?;
        Ok(found(&json!(configuration.devices)))
    }),
    ("GET", "/api/v1/vm.counters", |control, _, _| {
        control.counters().map(|counters| found(&counters))
    }),
    ("PUT", "/api/v1/vm.pause", |control, _, _| control.pause().map(done)),
    ("PUT", "/api/v1/vm.resume", |control, _, _| control.resume().map(done)),
    ("PUT", "/api/v1/vm.power-button", |control, _, _| control.press_power_button().map(done)),
    ("PUT", "/api/v1/vm.shutdown", |control, _, _| control.shut_down().map(done)),
    ("PUT", "/api/v1/vm.add-device", |control, body, files| {
        let added = control.add(body, files)?;
        Ok(added.map_or_else(refused, |devices| found(&json!(devices))))
    }),
    ("PUT", "/api/v1/vm.remove-device", |control, body, _| {
        Ok(control.remove(body)?.map_or_else(refused, done))
    }),
];

fn refused(refused: Refused) -> Response {
    match refused {
        Refused::Body(why) => Response::error(400, &why),
        Refused::Guest(error) => Response::error(422, &error.to_string()),
    }
}

fn found(value: &serde_json::Value) -> Response {
    Response::new(200, value.to_string())
}

fn done(_: ()) -> Response {
    Response::new(204, "")
}

/// The response to a request.
pub(crate) fn answer(asked: &Asked, files: Vec<File>, control: &Control) -> Response {
    let mut there = ROUTES.iter().filter(|(_, path, _)| *path == asked.path);
    let Some((method, _, action)) = there.next() else {
        let paths = ROUTES.map(|(method, path, _)| format!("{method} {path}"));
        return Response::error(404, &format!("unknown path; the paths are: {}", paths.join(", ")));
    };
    if *method != asked.method {
        return Response {
            allow: Some(method),
            ..Response::error(405, &format!("use the method {method}"))
        };
    }
    action(control, &asked.body, files).unwrap_or_else(|NotRunning| {
        Response::error(409, "the guest does not run yet, or reboots; try again")
    })
}
