use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use vm_device::device_manager::IoManager;

use super::server::{ROUTES, answer};
use super::*;
use crate::config::Thread;
use crate::host::landlock;
use crate::host::seccomp::Filter;
use crate::run::stop::Stop;
use crate::run::vcpu::{Gate, Machine, Vcpus};

/// No restrictions: the threads of tests make more system calls than the VMM's.
fn filter() -> Filter {
    Filter::new(&"off".parse().unwrap(), Thread::Control).unwrap()
}

fn asked(method: &str, path: &str) -> http::Response {
    let asked = http::Asked { method: method.into(), path: path.into(), body: Vec::new() };
    answer(&asked, Vec::new(), &Control::new().unwrap())
}

#[test]
fn the_openapi_file_describes_exactly_the_routes() {
    let file: Value = serde_json::from_str(include_str!("../../../openapi.json")).unwrap();
    let base = file["servers"][0]["url"].as_str().unwrap();
    let base = base.strip_prefix("http://localhost").unwrap();
    let described: BTreeSet<_> = file["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, methods)| {
            let methods = methods.as_object().unwrap().keys();
            methods.map(move |method| (method.to_uppercase(), format!("{base}{path}")))
        })
        .collect();
    let answered = ROUTES.map(|(method, path, _)| (method.to_owned(), path.to_owned()));
    assert_eq!(described, answered.into_iter().collect());
    for (method, path, _) in ROUTES {
        let status = asked(method, path).status.to_string();
        let path = path.strip_prefix(base).unwrap();
        let responses = &file["paths"][path][method.to_lowercase()]["responses"];
        assert!(responses[&status].is_object(), "{method} {path}: {status}");
    }
}

#[test]
fn without_a_running_guest_every_action_fails() {
    for (method, path, _) in ROUTES.iter().filter(|(method, ..)| *method == "PUT") {
        let response = asked(method, path);
        assert!(response.status == 409 && response.body.contains("try again"), "{path}");
    }
    let info = asked("GET", "/api/v1/vm.info").body;
    assert_eq!(info, r#"{"configuration":null,"state":"starting"}"#);
}

#[test]
fn an_unknown_request_is_answered_with_the_known_ones() {
    let response = asked("GET", "/");
    assert!(
        response.status == 404 && response.body.contains("PUT /api/v1/vm.pause"),
        "{response:?}"
    );
    let response = asked("POST", "/api/v1/vm.pause");
    assert_eq!((response.status, response.allow), (405, Some("PUT")));
}

#[test]
fn the_socket_is_private_to_its_user_and_removed_with_its_server() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("socket");
    let control = Arc::new(Control::new().unwrap());
    // The server replaces the socket of a killed VMM.
    drop(UnixListener::bind(&path).unwrap());
    let server = Server::start(&path, &control, filter()).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let text = Server::start(&path, &control, filter()).err().unwrap().to_string();
    assert!(
        text.starts_with("--control ") && text.contains("another VMM listens on this socket"),
        "{text}"
    );
    let text = stats(&path, false).unwrap_err().to_string();
    assert!(text.contains("try again"), "{text}");
    drop(server);
    assert!(!path.exists());
    let text = stats(&path, false).unwrap_err().to_string();
    assert!(text.contains("vmm --control"), "{text}");
    let text = Server::start(folder.path(), &control, filter()).err().unwrap().to_string();
    assert!(text.starts_with("--control "), "{text}");
}

#[test]
fn a_slow_client_is_disconnected() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("socket");
    let _server = Server::start(&path, &Arc::new(Control::new().unwrap()), filter()).unwrap();
    let mut slow = UnixStream::connect(&path).unwrap();
    slow.write_all(b"GET / HT").unwrap();
    // The second client waits, and gets its answer.
    assert!(stats(&path, false).unwrap_err().to_string().contains("try again"));
    slow.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert_eq!(slow.read(&mut [0; 16]).unwrap(), 0, "closed");
}

/// A life without vCPUs. Its counters try to open a file in the thread that reads them.
fn life() -> Life {
    let stop = Arc::new(Stop::new().unwrap());
    let machine = Machine {
        buses: IoManager::new(),
        coalesced: Arc::default(),
        stats: Arc::default(),
        stop: Arc::clone(&stop),
        gate: Gate::default(),
        filter: Arc::new(filter()),
    };
    Life {
        vcpus: Vcpus::start(Vec::new(), &Arc::new(machine)).unwrap(),
        stop,
        power_button: Box::new(|| {}),
        counters: Box::new(|| {
            let opened = std::fs::File::open("/proc/self/status");
            json!({ "opened": opened.map_err(|error| error.kind().to_string()).err() })
        }),
        hot_plug: None,
    }
}

#[test]
fn the_control_thread_cannot_open_files() {
    if !landlock::is_fully_enforced() {
        return eprintln!(
            "NOT RUN: the_control_thread_cannot_open_files: this kernel does not support all of Landlock's ABI 7"
        );
    }
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("socket");
    let control = Arc::new(Control::new().unwrap());
    control.begin(life());
    let _server = Server::start(&path, &control, filter()).unwrap();
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.write_all(b"GET /api/v1/vm.counters HTTP/1.1\r\nHost: vmm\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(r#"{"opened":"permission denied"}"#), "{answer}");
}
