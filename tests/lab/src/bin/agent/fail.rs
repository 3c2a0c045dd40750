//! Fails each system call of a thread in turn, by strace of the host's root.

use std::fs;
use std::io::{Error, Result};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::run::{IN_ROOT, output_of};

/// `fail-each ROOT PROCESS THREAD PROGRAM... ; PROGRAM...`: runs the first program again and again,
/// while call number 1, 2 and so on of the thread fails, until no call is left to fail. After a run
/// that succeeds it runs the second program.
pub const FAIL_EACH: &str = "fail-each";

/// The file that strace writes, within the root.
const TRACE: &str = "/tmp/failed";
/// More calls than a program makes its thread do.
const MOST: u32 = 500;

/// A thread whose calls fail.
pub struct Victim<'a> {
    pub root: &'a str,
    pub process: &'a str,
    /// The name of the thread.
    pub thread: &'a str,
}

impl Victim<'_> {
    /// Returns a line for each call, with the number of the process's descriptors afterwards, and
    /// the output of the program.
    pub fn fail_each(&self, program: &[String], undo: &[String]) -> String {
        let mut said = String::new();
        for number in 1..=MOST {
            match self.fail(number, program, undo) {
                Ok(Some(line)) => said += &line,
                Ok(None) => return format!("{said}{} calls failed\n", number.saturating_sub(1)),
                Err(error) => return format!("{said}call {number}: {error}\n"),
            }
        }
        said
    }

    fn fail(&self, number: u32, program: &[String], undo: &[String]) -> Result<Option<String>> {
        let task = self.task()?;
        let mut strace = self.attach(&task, number)?;
        let output = run(program);
        kill(Pid::from_raw(i32::try_from(strace.id()).map_err(Error::other)?), Signal::SIGTERM)?;
        strace.wait()?;
        let trace = fs::read_to_string(format!("{}{TRACE}", self.root))?;
        let failed = trace.lines().find(|line| line.contains("(INJECTED)"));
        let undone = if output.contains("error: ") { String::new() } else { run(undo) };
        let fds = fs::read_dir(format!("/proc/{}/fd", self.process))?.count();
        let text = [output.trim(), undone.trim()].join(" / ").replace('\n', " ");
        Ok(failed.map(|failed| format!("call {number}; {fds} fds; {failed}; {text}\n")))
    }

    /// The ID of the thread.
    fn task(&self) -> Result<String> {
        for task in fs::read_dir(format!("/proc/{}/task", self.process))? {
            let task = task?;
            if fs::read_to_string(task.path().join("comm"))?.trim() == self.thread {
                return Ok(task.file_name().to_string_lossy().into_owned());
            }
        }
        Err(Error::other("no such thread"))
    }

    /// Attaches strace to the thread, and waits until it traces it.
    fn attach(&self, task: &str, number: u32) -> Result<Child> {
        let inject = format!("inject=ioctl,mmap,eventfd2:error=ENOMEM:when={number}");
        let strace = ["/usr/bin/strace", "-qq", "-o", TRACE, "-e", &inject, "-p", task];
        let mut command = Command::new("/init");
        command.args([IN_ROOT, self.root]).args(strace).stdin(Stdio::null());
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let status = Path::new("/proc").join(self.process).join("task").join(task).join("status");
        for _ in 0..2000 {
            let tracer = fs::read_to_string(&status)?;
            if !tracer.lines().any(|line| line == "TracerPid:\t0") {
                return Ok(child);
            }
            sleep(Duration::from_millis(1));
        }
        Err(Error::other("strace did not attach"))
    }
}

fn run(words: &[String]) -> String {
    words.split_first().map(|(name, rest)| output_of(name, rest)).unwrap_or_default()
}
