//! A running L1: the QEMU process, its console, and the connection to the agent in L1.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Instant;

use tempfile::TempDir;

use crate::command::Tool;
use crate::machine::{Machine, MachineFiles};
use crate::protocol::{Finished, Message, Program, Request, Stream};
use crate::watchdog::{SILENCE_LIMIT, Watchdog};
use crate::{Arch, Error, Lab, Monitor, lab};

/// The number of console lines that are kept for error messages.
const CONSOLE_LINES: usize = 40;

/// Whether the lab shows the output of programs in L1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Echo {
    /// The lab prints the output when it arrives.
    Shown,
    /// Only the caller of [`L1::run`] gets the output.
    Silent,
}

/// A running L1. Dropping it ends the machine.
pub struct L1 {
    qemu: Child,
    agent: UnixStream,
    events: Receiver<Event>,
    watchdog: Watchdog,
    console: VecDeque<String>,
    echo: Echo,
    machine: Machine,
    images: Vec<PathBuf>,
    monitor: Monitor,
    ready_ns: u64,
    unguarded: Option<String>,
    _folder: TempDir,
}

/// An event of L1.
enum Event {
    Message(Message),
    Console(String),
    Gone,
}

/// The result of a program that ran in L1.
#[derive(Clone, Debug)]
pub struct Run {
    /// How the program ended, and the results of its triggers.
    pub finished: Finished,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl L1 {
    /// Boots a machine and waits until its agent is ready.
    pub fn boot(lab: &Lab, machine: &Machine, echo: Echo) -> Result<Self, Error> {
        let folder = tempfile::Builder::new().prefix("lab-").tempdir();
        let folder = folder.map_err(Error::file("create a folder in", std::env::temp_dir()))?;
        let files = lab.make_files(machine, folder.path())?;
        let listener =
            UnixListener::bind(&files.socket).map_err(Error::file("listen on", &files.socket))?;
        let mut qemu = start(machine, &files)?;
        let (sender, events) = channel();
        follow_console(&mut qemu, sender.clone());
        let agent = accept(&listener, &mut qemu)?;
        follow_agent(&agent, sender).map_err(Error::file("read", &files.socket))?;
        let monitor = Monitor::connect(&files.monitor)?;
        let mut l1 = Self {
            qemu,
            agent,
            events,
            watchdog: Watchdog::new(Instant::now()),
            console: VecDeque::new(),
            echo,
            machine: machine.clone(),
            images: files.images,
            monitor,
            ready_ns: 0,
            unguarded: None,
            _folder: folder,
        };
        match l1.answer()? {
            Message::Ready { at_ns, unguarded } => (l1.ready_ns, l1.unguarded) = (at_ns, unguarded),
            other => return Err(unexpected(&other)),
        }
        Ok(l1)
    }

    /// The description of the machine.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The time from the start of L1's kernel until the agent was ready, by L1's clock.
    #[must_use]
    pub fn ready_ns(&self) -> u64 {
        self.ready_ns
    }

    /// Why L2 may get an interrupt twice, or `None` if a guard prevents that. The small kernels
    /// have a guard built in; others of a PC need the agent's probe (see the agent's `guard`). QEMU
    /// emulates EL2 without that fault.
    #[must_use]
    pub fn unguarded(&self) -> Option<&str> {
        let needs_probe = self.machine.arch() == Arch::X86_64 && !self.machine.kernel.is_small();
        self.unguarded.as_deref().filter(|_| needs_probe)
    }

    /// Reads the disk image of device number `index`.
    pub fn image(&self, index: usize) -> Result<Vec<u8>, Error> {
        let path = self.images.get(index).cloned().unwrap_or_default();
        std::fs::read(&path).map_err(Error::file("read", &path))
    }

    /// The file beside the image of device number `index`, for what QEMU writes of that device.
    #[must_use]
    pub fn output(&self, index: usize) -> PathBuf {
        let mut path = self.images.get(index).cloned().unwrap_or_default().into_os_string();
        path.push(".out");
        path.into()
    }

    /// QEMU's monitor.
    pub fn monitor(&mut self) -> &mut Monitor {
        &mut self.monitor
    }

    /// Runs a program to its end.
    pub fn run(&mut self, program: Program) -> Result<Run, Error> {
        self.run_along(program, |_, _| Ok(()))
    }

    /// Runs a program to its end. Each time the program prints, calls `along` with the whole
    /// standard output so far; `along` may use QEMU's monitor.
    pub fn run_along(
        &mut self,
        program: Program,
        mut along: impl FnMut(&mut Monitor, &str) -> Result<(), Error>,
    ) -> Result<Run, Error> {
        self.send(&Request::Run(Box::new(program)))?;
        let (mut stdout, mut stderr) = (String::new(), String::new());
        loop {
            match self.answer().map_err(|error| error.after(&stdout))? {
                Message::Output { stream, text } => {
                    self.show(stream, &text);
                    match stream {
                        Stream::Out => {
                            stdout.push_str(&text);
                            along(&mut self.monitor, &stdout)?;
                        }
                        Stream::Err => stderr.push_str(&text),
                    }
                }
                Message::Finished(finished) => {
                    return Ok(Run { finished: *finished, stdout, stderr });
                }
                other => return Err(unexpected(&other)),
            }
        }
    }

    /// Reads a file of L1, or lists a folder.
    pub fn read(&mut self, path: &str) -> Result<String, Error> {
        match self.ask(&Request::Read { path: path.into() })? {
            Message::Contents { contents } => Ok(contents),
            other => Err(unexpected(&other)),
        }
    }

    /// Reads the messages of L1's kernel.
    pub fn kernel_log(&mut self) -> Result<String, Error> {
        match self.ask(&Request::KernelLog)? {
            Message::Contents { contents } => Ok(contents),
            other => Err(unexpected(&other)),
        }
    }

    /// Performs a request that has no result.
    pub fn perform(&mut self, request: &Request) -> Result<(), Error> {
        match self.ask(request)? {
            Message::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Binds a PCI function to a driver, or unbinds it.
    pub fn bind(&mut self, address: &str, driver: Option<&str>) -> Result<(), Error> {
        self.perform(&Request::Bind { address: address.into(), driver: driver.map(str::to_owned) })
    }

    /// Plugs NVMe number `index` in again, and waits until L1's kernel finds it.
    pub fn plug(&mut self, index: usize) -> Result<(), Error> {
        let device = self.machine.nvme(index);
        self.monitor.execute("device_add", &device)?;
        let path = format!("/sys/bus/pci/devices/{}/vendor", self.machine.address(index));
        let deadline = Instant::now().checked_add(SILENCE_LIMIT);
        loop {
            match self.read(&path) {
                Err(Error::Refused(_))
                    if deadline.is_some_and(|deadline| Instant::now() < deadline) =>
                {
                    thread::sleep(std::time::Duration::from_millis(20));
                }
                found => return found.map(drop),
            }
        }
    }

    /// Renames a file or a device node.
    pub fn rename(&mut self, from: &str, to: &str) -> Result<(), Error> {
        self.perform(&Request::Rename { from: from.into(), to: to.into() })
    }

    fn ask(&mut self, request: &Request) -> Result<Message, Error> {
        self.send(request)?;
        self.answer()
    }

    fn send(&mut self, request: &Request) -> Result<(), Error> {
        let mut line = serde_json::to_vec(request).map_err(Error::json("a request"))?;
        line.push(b'\n');
        self.watchdog.sign_of_life(Instant::now());
        self.agent.write_all(&line).map_err(|_| Error::Gone { console: self.console_tail() })
    }

    /// Waits for the next message. Fails if the machine ends, or stays silent for too long.
    fn answer(&mut self) -> Result<Message, Error> {
        loop {
            let left = self.watchdog.left(Instant::now()).unwrap_or_default();
            match self.events.recv_timeout(left) {
                Ok(event) => {
                    self.watchdog.sign_of_life(Instant::now());
                    if let Some(message) = self.take(event)? {
                        return Ok(message);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    let seconds = SILENCE_LIMIT.as_secs();
                    return Err(Error::Stalled { seconds, console: self.console_tail() });
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::Gone { console: self.console_tail() });
                }
            }
        }
    }

    fn take(&mut self, event: Event) -> Result<Option<Message>, Error> {
        match event {
            Event::Message(Message::Failed { why }) => Err(Error::Refused(why)),
            Event::Message(Message::Output { text, .. }) if reports_a_hang(&text) => {
                Err(Error::Stalled {
                    seconds: HANG_REPORTED_AFTER,
                    console: format!("{}\n{text}", self.console_tail()),
                })
            }
            Event::Message(message) => Ok(Some(message)),
            Event::Console(line) => {
                self.console.push_back(line);
                if self.console.len() > CONSOLE_LINES {
                    self.console.pop_front();
                }
                Ok(None)
            }
            Event::Gone => Err(Error::Gone { console: self.console_tail() }),
        }
    }

    fn show(&self, stream: Stream, text: &str) {
        // A failed write to the user's terminal must not fail the run.
        let _ = match (self.echo, stream) {
            (Echo::Silent, _) => Ok(()),
            (Echo::Shown, Stream::Out) => lab::out(text),
            (Echo::Shown, Stream::Err) => std::io::stderr().write_all(text.as_bytes()),
        };
    }

    fn console_tail(&self) -> String {
        self.console.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}

/// The seconds after which a kernel reports a hang (`CONFIG_RCU_CPU_STALL_TIMEOUT`).
const HANG_REPORTED_AFTER: u64 = 21;

/// Whether a kernel reports that one of its CPUs hangs (Documentation/RCU/stallwarn.rst). Such
/// reports repeat, so the watchdog would never see silence. QEMU's emulation of SVM hangs an L2 now
/// and then if L1 has no guard (see the agent's `guard`).
fn reports_a_hang(text: &str) -> bool {
    text.contains("rcu: INFO: ") && text.contains("stall")
}

impl Drop for L1 {
    fn drop(&mut self) {
        // L1 has no state to save. Both calls fail only if QEMU has ended.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn start(machine: &Machine, files: &MachineFiles) -> Result<Child, Error> {
    let name = machine.arch().platform().qemu;
    let (program, firmware) = match &files.qemu {
        None => (name.into(), Vec::new()),
        Some(root) => (root.join("usr/bin").join(name), firmware_of(root)),
    };
    let mut tool = Tool::new(&program).args(firmware).args(machine.arguments(files));
    if let Some(root) = &files.qemu {
        // Those of the host are of another version.
        tool = tool.env("QEMU_MODULE_DIR", root.join("usr/lib/x86_64-linux-gnu/qemu"));
    }
    let mut command = tool.into_command();
    command.stdout(Stdio::piped()).stderr(Stdio::inherit());
    command.spawn().map_err(Error::file("start", &program))
}

/// The arguments for the firmware of an unpacked QEMU.
fn firmware_of(root: &Path) -> Vec<OsString> {
    let folders = ["usr/share/qemu", "usr/share/seabios"];
    folders.into_iter().flat_map(|folder| ["-L".into(), root.join(folder).into()]).collect()
}

/// Waits until QEMU connects, or ends because it rejects its arguments.
fn accept(listener: &UnixListener, qemu: &mut Child) -> Result<UnixStream, Error> {
    let failed =
        |error: std::io::Error| Error::Gone { console: format!("QEMU did not start: {error}") };
    listener.set_nonblocking(true).map_err(failed)?;
    let start = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).map_err(failed)?;
                return Ok(stream);
            }
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => {
                return Err(failed(error));
            }
            Err(_) => thread::sleep(std::time::Duration::from_millis(5)),
        }
        if let Some(status) = qemu.try_wait().map_err(failed)? {
            return Err(Error::Gone { console: format!("QEMU ended at once: {status}") });
        }
        if start.elapsed() > SILENCE_LIMIT {
            return Err(Error::Stalled {
                seconds: SILENCE_LIMIT.as_secs(),
                console: String::new(),
            });
        }
    }
}

fn follow_console(qemu: &mut Child, sender: Sender<Event>) {
    let Some(console) = qemu.stdout.take() else {
        return;
    };
    thread::spawn(move || {
        each_line(console, |line| sender.send(Event::Console(line)).is_ok());
        // The console closes when QEMU ends. The send fails if the receiver has been dropped.
        let _ = sender.send(Event::Gone);
    });
}

fn follow_agent(agent: &UnixStream, sender: Sender<Event>) -> std::io::Result<()> {
    let agent = agent.try_clone()?;
    thread::spawn(move || {
        each_line(agent, |line| {
            let message = serde_json::from_str(&line);
            let message =
                message.unwrap_or_else(|error| Message::Failed { why: format!("{error}: {line}") });
            sender.send(Event::Message(message)).is_ok()
        });
    });
    Ok(())
}

/// Calls `take` with each line until it returns `false` or the source ends.
fn each_line(source: impl Read, mut take: impl FnMut(String) -> bool) {
    let mut source = BufReader::new(source);
    let mut line = Vec::new();
    while source.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
        if !take(String::from_utf8_lossy(&line).trim_end().to_owned()) {
            return;
        }
        line.clear();
    }
}

fn unexpected(message: &Message) -> Error {
    Error::UnexpectedAnswer(format!("{message:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recognizes_a_kernels_report_of_a_hang() {
        let hang = "[   84.1] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:\r\n";
        assert!(reports_a_hang(hang));
        assert!(reports_a_hang("rcu: INFO: rcu_sched self-detected stall on CPU"));
        for line in ["rcu: Hierarchical RCU implementation.", "nvme nvme0: stalled"] {
            assert!(!reports_a_hang(line), "{line}");
        }
    }
}
