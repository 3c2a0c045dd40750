//! The seccomp lists: each listed call is needed, and any other call ends the VMM.

use std::env;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::Child;
use std::sync::Mutex;
use std::thread::{self, sleep};

use nix::libc::SIGSYS;
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use vmm::{Seccomp, Thread};

use super::*;

const STATUS: i32 = 128 + SIGSYS;

/// Rows that are needed only with an assigned device; the nested machine tests these.
const WITH_DEVICES: &str = concat!(
    include_str!("seccomp-with-devices.txt"),
    include_str!("seccomp-with-iommufd.txt"),
    include_str!("seccomp-with-hot-plug.txt")
);

/// Scenarios that together make every call of the lists, the fastest first. The argument is the
/// value of `--seccomp`.
const SCENARIOS: [fn(&str) -> Output; 10] = [
    powers_off,
    reboots,
    faults,
    |option| under(option, "memory"),
    |option| under(option, "abort"),
    |option| under(option, "clock"),
    |option| under(option, "thread"),
    has_a_terminal,
    is_controlled,
    |option| under(option, "sleep"),
];

/// Calls that the C library makes with all signals blocked, as a thread starts or ends, and calls
/// that print the message. SIGSYS then ends the process without a message.
const SILENT: [&str; 8] =
    ["write", "exit_group", "rt_sigreturn", "madvise", "exit", "set_robust_list", "rseq", "clone3"];

/// Without a row, the VMM ends with a message that names the call.
#[test]
fn each_row_of_each_list_is_needed() {
    if !has_kvm("each_row_of_each_list_is_needed") {
        return;
    }
    let native = vmm::seccomp_rows().filter(|row| !WITH_DEVICES.lines().any(|line| line == row));
    let (rows, unneeded) = (Mutex::new(native), Mutex::new(Vec::new()));
    let check = || {
        while let Some(row) = { rows.lock().unwrap().next() } {
            if !is_needed(&row) {
                unneeded.lock().unwrap().push(row);
            }
        }
    };
    thread::scope(|scope| (0..2).for_each(|_| drop(scope.spawn(check))));
    let unneeded = unneeded.into_inner().unwrap();
    assert!(unneeded.is_empty(), "not needed: {unneeded:#?}");
}

fn is_needed(row: &str) -> bool {
    let (thread, call) = row.split_once(':').unwrap();
    // Only the message uses this call, so the test needs a second violation.
    let more = match call {
        "exit_group" => format!(",without={thread}:close"),
        _ => String::new(),
    };
    let option = format!("on,without={row}{more}");
    let is_missed = |output: Output| {
        let stderr = text(&output);
        let named =
            stderr.contains(&format!(": {call} (")) || stderr.contains(&format!("({call})"));
        let silent = SILENT.contains(&call) && output.status.signal() == Some(SIGSYS);
        silent || named && output.status.code() == Some(STATUS)
    };
    SCENARIOS.iter().any(|scenario| is_missed(scenario(&option)))
}

#[test]
fn with_all_rows_no_call_is_refused() {
    if !has_kvm("with_all_rows_no_call_is_refused") {
        return;
    }
    for option in ["on", "log", "off"] {
        for scenario in SCENARIOS {
            let output = scenario(option);
            let stderr = text(&output);
            assert!(!stderr.contains("seccomp"), "{option}: {stderr}");
            assert_ne!(output.status.signal(), Some(SIGSYS), "{option}: {stderr}");
        }
    }
}

/// Starts the VMM with these arguments.
fn start(option: &str, kernel: NamedTempFile, arguments: &[&str]) -> Running {
    let vmm = vmm()
        .args(["--memory", "64M", "--cpus", "2", "--seccomp", option, "--kernel"])
        .arg(kernel.path())
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    Running { vmm, _kernel: kernel }
}

struct Running {
    vmm: Child,
    _kernel: NamedTempFile,
}

impl Running {
    /// Waits for a byte of the guest's output, or for the guest's end.
    fn await_output(&mut self) {
        let stdout = self.vmm.stdout.as_mut().unwrap();
        let _ = stdout.take(1).read_to_end(&mut Vec::new());
    }

    fn end(self) -> Output {
        self.vmm.wait_with_output().unwrap()
    }
}

/// Sends a signal, and ignores a process that has ended.
fn send(to: &Child, signal: Signal) {
    let _ = kill(Pid::from_raw(to.id().try_into().unwrap()), signal);
}

/// Stops a process, waits until all of its threads have stopped, and continues it.
fn stop_and_continue(process: &mut Child) {
    let tasks = format!("/proc/{}/task", process.id());
    let states = || -> Vec<_> {
        let tasks = std::fs::read_dir(&tasks).into_iter().flatten().flatten();
        let stat = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("stat")).ok();
        // The state follows the name, which is in parentheses.
        tasks
            .filter_map(stat)
            .filter_map(|stat| stat.rsplit(')').next()?.trim().chars().next())
            .collect()
    };
    send(process, Signal::SIGSTOP);
    while process.try_wait().unwrap().is_none() && states().iter().any(|state| *state != 'T') {
        sleep(Duration::from_millis(1));
    }
    send(process, Signal::SIGCONT);
}

fn powers_off(option: &str) -> Output {
    let folder = TempDir::new().unwrap();
    let stats = folder.path().join("stats");
    let kernel = program(&[out(COM1, b'.'), out(POWER_OFF.0, POWER_OFF.1)]);
    start(option, kernel, &["--stats", stats.to_str().unwrap()]).end()
}

fn reboots(option: &str) -> Output {
    start(option, reboots_once(), &[]).end()
}

/// `int3` without an interrupt table.
fn faults(option: &str) -> Output {
    start(option, program(&[vec![0xcc]]), &[]).end()
}

/// The VMM changes the terminal's modes and restores them, in each of two lives.
fn has_a_terminal(option: &str) -> Output {
    let kernel = reboots_once();
    let terminal = openpty(None, None).unwrap();
    let vmm = Command::new("setsid")
        .args(["--wait", "--ctty", env!("CARGO_BIN_EXE_vmm"), "--memory", "64M"])
        .args(["--seccomp", option, "--kernel"])
        .arg(kernel.path())
        .stdin(terminal.slave)
        .output();
    vmm.unwrap()
}

/// Controls the guest by its socket and by signals, one of which stops the process.
fn is_controlled(option: &str) -> Output {
    let folder = TempDir::new().unwrap();
    let socket = folder.path().join("vm.sock");
    let kernel = program(&[out(COM1, b'\n')]);
    let mut running = start(option, kernel, &["--control", socket.to_str().unwrap()]);
    running.await_output();
    // A VMM that has ended does not answer.
    let ask = |what: &str| {
        let mut answer = String::new();
        if let Ok(mut stream) = UnixStream::connect(&socket) {
            let _ = stream.write_all(format!("{what} HTTP/1.1\r\nHost: vmm\r\n\r\n").as_bytes());
            let _ = stream.read_to_string(&mut answer);
        }
        answer
    };
    // The guest can print its output before the control socket knows its life.
    while running.vmm.try_wait().unwrap().is_none()
        && !ask("GET /api/v1/vm.info").contains("running")
    {
        sleep(Duration::from_millis(1));
    }
    for what in [
        "GET /api/v1/vmm.ping",
        "PUT /api/v1/vm.pause",
        "GET /api/v1/vm.counters",
        "PUT /api/v1/vm.resume",
        "PUT /api/v1/vm.power-button",
    ] {
        ask(what);
    }
    for signal in [Signal::SIGUSR1, Signal::SIGUSR2] {
        send(&running.vmm, signal);
    }
    // Repeat this, because the thread may not wait yet.
    for _ in 0..SLEEPS {
        sleep(NAP / 2);
        stop_and_continue(&mut running.vmm);
    }
    ask("GET /api/v1/vmm.ping");
    send(&running.vmm, Signal::SIGTERM);
    running.end()
}

const SLEEPS: u32 = 20;
const NAP: Duration = Duration::from_millis(20);

const UNDER: &str = "VMM_TEST_UNDER_A_LIST";

/// Runs a thread with the list that `option` removes a row from, in a separate process.
fn under(option: &str, does: &str) -> Output {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "seccomp::a_thread_under_a_list"])
        .env(UNDER, format!("{option} {does}"))
        // The VMM sets the same limit.
        .env("GLIBC_TUNABLES", "glibc.malloc.arena_max=1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    if does == "sleep" {
        for _ in 0..SLEEPS {
            sleep(NAP / 2);
            stop_and_continue(&mut child);
        }
    }
    child.wait_with_output().unwrap()
}

/// The process that [`under`] starts; does nothing when it runs as an ordinary test.
#[test]
fn a_thread_under_a_list() {
    let Ok(asked) = env::var(UNDER) else { return };
    let (option, does) = asked.split_once(' ').unwrap();
    let kind = match option {
        _ if option.contains("=vcpu:") => Thread::Vcpu,
        _ if option.contains("=control:") => Thread::Control,
        _ => Thread::Main,
    };
    let seccomp: Seccomp = option.parse().unwrap();
    vmm::prepare_seccomp(&seccomp).unwrap();
    let does = does.to_owned();
    let thread = thread::spawn(move || {
        vmm::restrict_thread(&seccomp, kind).unwrap();
        match does.as_str() {
            // Allocate and free memory of all sizes.
            "memory" => {
                let small: Vec<_> = (0..100).map(|_| vec![1_u8; 100 << 10]).collect();
                let mut large = vec![1_u8; 1 << 20];
                large.resize(16 << 20, 1);
                drop((small, large));
            }
            // A panic without unwinding aborts.
            "abort" => std::process::abort(),
            // The control thread opens and closes devices in threads.
            "thread" => {
                let started = thread::Builder::new().name("device".into()).stack_size(256 << 10);
                started.spawn(|| ()).unwrap().join().unwrap();
            }
            // The kernel restarts a stopped call as another call.
            "sleep" => (0..SLEEPS).for_each(|_| sleep(NAP)),
            // This clock always needs a system call; on some hosts every clock does.
            _ => drop(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)),
        }
    });
    thread.join().unwrap();
}
