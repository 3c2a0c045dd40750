//! Runs programs, forwards their output to the lab, and acts on triggers.

use std::collections::BTreeMap;
use std::env::set_current_dir;
use std::fs::File;
use std::io::{Error, Read, Result, Write as _, copy, repeat};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::chroot;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use lab::protocol::{Ending, Fifo, Finished, Message, Program, Sighting, Stream, Trigger};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, mkfifo};

use crate::channel::Sender;
use crate::{cgroup, setup};

/// The agent's first argument to execute a program in another root: see [`exec_in_root`].
pub const IN_ROOT: &str = "in-root";

/// L1's clock in nanoseconds. With QEMU's `-icount` it is the number of instructions that L1 has
/// run.
pub fn now_ns() -> u64 {
    let time =
        clock_gettime(ClockId::CLOCK_MONOTONIC).map(std::time::Duration::from).unwrap_or_default();
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Runs a program to its end, and sends its output as it comes.
pub fn run(program: &Program, sender: &Sender) -> Result<Finished> {
    let started_ns = now_ns();
    let mut child = spawn(program)?;
    feed(&mut child, &program.input)?;
    let process = Pid::from_raw(i32::try_from(child.id()).map_err(Error::other)?);
    let watch = Watch { process, started_ns, triggers: program.triggers.clone() };
    let out = child.stdout.take().map(|pipe| follow(pipe, Stream::Out, sender.clone(), watch));
    let err = child
        .stderr
        .take()
        .map(|pipe| follow(pipe, Stream::Err, sender.clone(), Watch::nothing(process)));
    let status = thread::scope(|scope| {
        let (ended, end) = channel::<()>();
        if let Some((after_ns, signal)) = program.signal_after {
            let after =
                Duration::from_nanos(after_ns.saturating_sub(now_ns().saturating_sub(started_ns)));
            scope.spawn(move || {
                if end.recv_timeout(after) == Err(RecvTimeoutError::Timeout) {
                    send(process, signal);
                }
            });
        }
        let status = child.wait();
        drop(ended);
        status
    })?;
    let elapsed_ns = now_ns().saturating_sub(started_ns);
    let sightings = join(out)?;
    join(err)?;
    Ok(Finished { ending: ending(status), elapsed_ns, sightings })
}

/// Makes a FIFO, and starts a thread that writes to it as soon as it is read. The thread reports
/// nothing: the program that reads finds its input too short.
fn feed_fifo(fifo: &Fifo) -> Result<()> {
    match mkfifo(fifo.path.as_str(), Mode::S_IRWXU) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let Fifo { path, from, zeros } = fifo.clone();
    thread::spawn(move || -> Result<()> {
        let mut file = File::options().write(true).open(path)?;
        copy(&mut File::open(from)?, &mut file)?;
        copy(&mut repeat(0).take(zeros), &mut file)?;
        Ok(())
    });
    Ok(())
}

fn spawn(program: &Program) -> Result<Child> {
    program.fifos.iter().try_for_each(feed_fifo)?;
    let arguments = match &program.root {
        Some(root) => {
            [&["/init".into(), IN_ROOT.into(), root.clone()], program.arguments.as_slice()].concat()
        }
        None => program.arguments.clone(),
    };
    // The files stay open in this process until the program has started.
    let opened = program.open.iter().map(inherited).collect::<Result<Vec<_>>>()?;
    let arguments: Vec<_> = arguments.iter().map(|text| numbered(text, &opened)).collect();
    let (name, arguments) = arguments.split_first().ok_or(Error::other("no program"))?;
    let mut command = Command::new(name);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).current_dir("/");
    if let Some(user) = program.user {
        command.uid(user).gid(user);
    }
    let both = |limit: Option<u64>| limit.map(|limit| (limit, limit));
    let limits = [
        (Resource::RLIMIT_MEMLOCK, both(program.memlock)),
        (Resource::RLIMIT_AS, both(program.address_space)),
        (Resource::RLIMIT_NOFILE, program.open_files),
    ];
    cgroup::inside(&program.cgroup, || with_limits(&limits, || command.spawn()))
}

/// Opens a file that a started program inherits.
fn inherited(path: &String) -> Result<File> {
    let file = File::options().read(true).write(path.starts_with("/dev/")).open(path)?;
    fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(file)
}

/// Replaces `{0}`, `{1}` and so on in an argument by the fds of `opened`.
fn numbered(text: &str, opened: &[File]) -> String {
    let files = opened.iter().enumerate();
    files.fold(text.to_owned(), |text, (index, file)| {
        text.replace(&format!("{{{index}}}"), &file.as_raw_fd().to_string())
    })
}

/// Executes a program in another root, and returns only on an error. `arguments` are: the agent,
/// [`IN_ROOT`], the new root, the program, and the program's arguments. The agent runs itself for
/// this, because std has no safe way to change the root between fork and exec.
pub fn exec_in_root(arguments: &[String]) -> Error {
    let Some((root, [name, rest @ ..])) = arguments.get(2..).and_then(<[String]>::split_first)
    else {
        return Error::other("no root or no program");
    };
    match chroot(root).and_then(|()| set_current_dir("/")) {
        Ok(()) => Command::new(name).args(rest).exec(),
        Err(error) => error,
    }
}

/// Does `work` with these limits. A program inherits limits, so the agent sets its own while it
/// starts the program.
fn with_limits<T>(
    limits: &[(Resource, Option<(u64, u64)>)],
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let Some(((resource, limit), rest)) = limits.split_first() else {
        return work();
    };
    let Some((low, high)) = *limit else {
        return with_limits(rest, work);
    };
    let (soft, hard) = getrlimit(*resource)?;
    setrlimit(*resource, low, high)?;
    let result = with_limits(rest, work);
    setrlimit(*resource, soft, hard)?;
    result
}

/// Sends a signal. An error is ignored: the process may have ended.
pub fn send(process: Pid, signal: i32) {
    let _ = Signal::try_from(signal).map(|signal| kill(process, signal));
}

fn feed(child: &mut Child, input: &str) -> Result<()> {
    let Some(mut pipe) = child.stdin.take() else {
        return Ok(());
    };
    match pipe.write_all(input.as_bytes()) {
        // The program ended before it read its input. Its status is reported.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

fn ending(status: ExitStatus) -> Ending {
    match status.signal() {
        Some(signal) => Ending::Signal(signal),
        None => Ending::Status(status.code().unwrap_or(-1)),
    }
}

fn join(thread: Option<JoinHandle<Vec<Sighting>>>) -> Result<Vec<Sighting>> {
    let Some(thread) = thread else {
        return Ok(Vec::new());
    };
    thread.join().map_err(|_| Error::other("the thread that reads the output panicked"))
}

/// Starts a thread that forwards the output in `pipe` until it ends, and acts on the triggers of
/// `watch`.
fn follow(
    mut pipe: impl Read + Send + 'static,
    stream: Stream,
    sender: Sender,
    watch: Watch,
) -> JoinHandle<Vec<Sighting>> {
    thread::spawn(move || {
        let mut sightings = Vec::new();
        let mut seen = String::new();
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = pipe.read(&mut buffer) {
            let text =
                String::from_utf8_lossy(buffer.get(..count).unwrap_or_default()).into_owned();
            seen.push_str(&text);
            // Act on triggers before sending, because they measure time and sending takes time.
            sightings.extend(watch.look(&seen, sightings.len()));
            keep_last_line(&mut seen);
            if sender.send(&Message::Output { stream, text }).is_err() {
                break;
            }
        }
        sightings
    })
}

/// Keeps only the incomplete last line: a trigger's text is within one line.
fn keep_last_line(seen: &mut String) {
    if let Some(end) = seen.rfind('\n') {
        seen.drain(..=end);
    }
}

/// Runs another program to its end; returns its output or the error.
pub fn output_of(name: &str, arguments: &[String]) -> String {
    match Command::new(name).args(arguments).stdin(Stdio::null()).output() {
        Ok(output) => {
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
        }
        Err(error) => format!("{name}: {error}"),
    }
}

/// Sends a request to a UNIX socket; returns the answer until the other side closes, or the error.
pub fn answer_of(socket: &str, request: &str) -> String {
    let mut answer = String::new();
    let done = UnixStream::connect(socket).and_then(|mut stream| {
        stream.write_all(request.as_bytes())?;
        stream.read_to_string(&mut answer)
    });
    match done {
        Ok(_) => answer + "\n",
        Err(error) => format!("{answer}{socket}: {error}\n"),
    }
}

/// The triggers of a program.
struct Watch {
    process: Pid,
    started_ns: u64,
    triggers: Vec<Trigger>,
}

impl Watch {
    fn nothing(process: Pid) -> Self {
        Self { process, started_ns: 0, triggers: Vec::new() }
    }

    /// Looks for the texts of the triggers from number `done` on, in order, and acts on those
    /// found.
    fn look(&self, seen: &str, done: usize) -> Vec<Sighting> {
        let waiting = self.triggers.iter().skip(done);
        waiting
            .take_while(|trigger| seen.contains(&trigger.marker))
            .map(|trigger| self.act(trigger))
            .collect()
    }

    /// A text with the program's process ID in place of `{pid}`.
    fn named(&self, text: &str) -> String {
        text.replace("{pid}", &self.process.to_string())
    }

    fn act(&self, trigger: &Trigger) -> Sighting {
        let after_ns = now_ns().saturating_sub(self.started_ns);
        let read = |path: &String| Some((path.clone(), setup::read(&self.named(path)).ok()?));
        let files: BTreeMap<_, _> = trigger.files.iter().filter_map(read).collect();
        let answers = trigger.asks.iter().map(|(socket, request)| answer_of(socket, request));
        let mut said: String = answers.collect();
        let program: Vec<_> = trigger.program.iter().map(|word| self.named(word)).collect();
        if let Some((name, rest)) = program.split_first() {
            said += &output_of(name, rest);
        }
        if let Some(signal) = trigger.signal {
            send(self.process, signal);
        }
        let until_ns = now_ns().saturating_sub(self.started_ns);
        Sighting { marker: trigger.marker.clone(), after_ns, until_ns, files, said }
    }
}
