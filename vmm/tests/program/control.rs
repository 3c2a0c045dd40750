//! Controls a running guest by curl at its socket, by `vmm stats`, and by signals.

use std::path::PathBuf;
use std::process::Child;
use std::thread::sleep;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

/// A guest that writes dots forever, with a control socket.
struct Busy {
    vmm: Child,
    socket: PathBuf,
    _files: (TempDir, NamedTempFile),
}

impl Busy {
    /// `None` if this machine lacks KVM or curl.
    fn start(test: &str) -> Option<Self> {
        if !has_kvm(test) {
            return None;
        }
        if Command::new("curl").arg("--version").output().is_err() {
            eprintln!("NOT RUN: {test}: no curl");
            return None;
        }
        let dot = out(COM1, b'.');
        let back = u8::try_from(0x100 - dot.len() - 2).unwrap();
        let kernel = elf(&[dot, vec![0xeb, back]].concat());
        let folder = TempDir::new().unwrap();
        let socket = folder.path().join("vm.sock");
        let vmm = vmm()
            .args(["--memory", "64M", "--cpus", "2", "--control"])
            .arg(&socket)
            .arg("--kernel")
            .arg(kernel.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let busy = Self { vmm, socket, _files: (folder, kernel) };
        busy.wait_for("running");
        Some(busy)
    }

    /// The status and body of curl's request.
    fn curl(&self, method: &str, what: &str) -> (String, Value) {
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "10", "--request", method])
            .args(["--write-out", "\n%{http_code}", "--unix-socket"])
            .arg(&self.socket)
            .arg(format!("http://localhost/api/v1/{what}"))
            .output()
            .unwrap();
        let out = String::from_utf8(output.stdout).unwrap();
        let (body, status) = out.rsplit_once('\n').unwrap();
        (status.to_owned(), serde_json::from_str(body).unwrap_or_default())
    }

    fn put(&self, what: &str) {
        assert_eq!(self.curl("PUT", what), ("204".to_owned(), Value::Null), "{what}");
    }

    fn state(&self) -> String {
        let (_, info) = self.curl("GET", "vm.info");
        info["state"].as_str().unwrap_or_default().to_owned()
    }

    fn wait_for(&self, state: &str) {
        let begin = Instant::now();
        while self.state() != state {
            assert!(begin.elapsed() < PATIENCE, "never {state}");
            sleep(Duration::from_millis(5));
        }
    }

    fn exits(&self) -> u64 {
        let (status, counters) = self.curl("GET", "vm.counters");
        assert_eq!(status, "200");
        counters["exits"]["total"].as_u64().unwrap()
    }

    /// Asserts that the guest makes no exit in 100 ms; a running vCPU makes thousands.
    fn assert_paused(&self) {
        let before = self.exits();
        sleep(Duration::from_millis(100));
        assert_eq!(self.exits(), before);
    }

    fn assert_running(&self) {
        let before = self.exits();
        let begin = Instant::now();
        while self.exits() == before {
            assert!(begin.elapsed() < PATIENCE, "the guest does not run");
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.vmm.id().try_into().unwrap()), signal).unwrap();
    }

    fn status(mut self) -> Option<i32> {
        let status = self.vmm.wait().unwrap().code();
        assert!(!self.socket.exists(), "the VMM did not remove its socket");
        status
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        // The VMM has ended already if the test passed.
        let _ = self.vmm.kill();
        let _ = self.vmm.wait();
    }
}

#[test]
fn curl_inspects_pauses_resumes_and_ends_a_guest() {
    let name = "curl_inspects_pauses_resumes_and_ends_a_guest";
    let Some(guest) = Busy::start(name) else {
        return;
    };
    let (status, ping) = guest.curl("GET", "vmm.ping");
    assert_eq!((status.as_str(), &ping["pid"]), ("200", &json!(guest.vmm.id())));
    let (_, info) = guest.curl("GET", "vm.info");
    let configuration = &info["configuration"];
    assert_eq!(
        (&configuration["cpus"], &configuration["memory_bytes"]),
        (&json!(2), &json!(64 << 20))
    );
    assert_eq!(guest.curl("GET", "vm.devices"), ("200".into(), json!([])));

    for _ in 0..20 {
        guest.put("vm.pause");
        assert_eq!(guest.state(), "paused");
        let exits = guest.exits();
        guest.put("vm.pause");
        assert_eq!(guest.exits(), exits, "the guest was already paused");
        guest.put("vm.resume");
        assert_eq!(guest.state(), "running");
        guest.assert_running();
    }
    guest.put("vm.pause");
    guest.assert_paused();
    guest.put("vm.power-button");
    // A paused guest accepts this too.
    guest.put("vm.shutdown");
    assert_eq!(guest.status(), Some(0));
}

#[test]
fn signals_pause_resume_and_end_a_guest() {
    let Some(guest) = Busy::start("signals_pause_resume_and_end_a_guest") else {
        return;
    };
    guest.signal(Signal::SIGUSR1);
    guest.wait_for("paused");
    guest.assert_paused();
    guest.signal(Signal::SIGUSR2);
    guest.wait_for("running");
    guest.assert_running();
    guest.signal(Signal::SIGUSR1);
    guest.wait_for("paused");
    guest.signal(Signal::SIGTERM);
    assert_eq!(guest.status(), Some(128 + 15));
}

#[test]
fn stats_prints_the_counters_as_a_table() {
    let Some(guest) = Busy::start("stats_prints_the_counters_as_a_table") else {
        return;
    };
    guest.assert_running();
    let stats = |words: &[&str]| {
        let output = vmm().arg("stats").arg(&guest.socket).args(words).output().unwrap();
        assert_eq!((text(&output), output.status.code()), (String::new(), Some(0)));
        String::from_utf8(output.stdout).unwrap()
    };
    let table = stats(&[]);
    let value = |name: &str| {
        let line = table.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_whitespace().last()?.parse::<u64>().ok())
    };
    assert!(value("exits io_out").is_some_and(|count| count > 0), "{table}");
    assert_eq!(value("kvm_ioctls create_vm"), Some(1), "{table}");
    assert!(table.lines().any(|line| line.starts_with("phase kvm")), "{table}");
    let json: Value = serde_json::from_str(&stats(&["--json"])).unwrap();
    assert_eq!(json["kvm_ioctls"]["create_vm"], 1);
    guest.put("vm.shutdown");
    assert_eq!(guest.status(), Some(0));
}

#[test]
fn names_a_socket_that_cannot_be_created() {
    let output = run(Path::new("/nonexistent"), &["--control", "/nonexistent/vm.sock"]);
    assert_eq!(output.status.code(), Some(1));
    let text = text(&output);
    assert!(text.starts_with("error: --control /nonexistent/vm.sock: "), "{text}");
}
