//! Programs that a trigger composes: one after another, or one in the midst of another,
//! and those of [`crate::fail`].

use std::fs;
use std::thread::{self, sleep};
use std::time::Duration;

use nix::unistd::Pid;

use crate::fail::{FAIL_EACH, Victim};
use crate::run::{answer_of, now_ns, output_of, send};

/// `in-turn PROGRAM... ; PROGRAM...`: runs programs, one after another, and prints after each how
/// long it took.
const IN_TURN: &str = "in-turn";
/// `amid NANOSECONDS PROGRAM... ; PROGRAM...`: runs the second program that long after the first has
/// started, and waits for both.
const AMID: &str = "amid";
/// `wait NANOSECONDS`.
const WAIT: &str = "wait";
/// `send PROCESS SIGNAL`.
const SEND: &str = "send";
/// `ask SOCKET METHOD RESOURCE`: a request to a VMM's control socket.
const ASK: &str = "ask";

/// `write PATH TEXT`.
const WRITE: &str = "write";

/// The word between two programs.
const SEPARATOR: &str = ";";

/// Acts as the words say, and returns what to print; `None` if the first word is no act.
pub fn act(words: &[String]) -> Option<String> {
    let (act, rest) = words.split_first()?;
    match (act.as_str(), rest) {
        (IN_TURN, programs) => Some(programs.split(is_separator).map(timed).collect()),
        (AMID, [after, programs @ ..]) => {
            let (first, second) = programs.split_at(programs.iter().position(is_separator)?);
            Some(amid(nanoseconds(after)?, first, second.get(1..)?))
        }
        (FAIL_EACH, [root, process, thread, programs @ ..]) => {
            let (first, second) = programs.split_at(programs.iter().position(is_separator)?);
            Some(Victim { root, process, thread }.fail_each(first, second.get(1..)?))
        }
        (WAIT, [time]) => {
            sleep(nanoseconds(time)?);
            Some(String::new())
        }
        (SEND, [process, signal]) => {
            send(Pid::from_raw(process.parse().ok()?), signal.parse().ok()?);
            Some(String::new())
        }
        (WRITE, [path, text]) => {
            let written = fs::write(path, text);
            Some(written.err().map(|error| format!("{path}: {error}\n")).unwrap_or_default())
        }
        (ASK, [socket, method, resource]) => {
            let request = format!("{method} /api/v1/{resource} HTTP/1.1\r\nHost: vmm\r\n\r\n");
            Some(answer_of(socket, &request))
        }
        _ => None,
    }
}

fn is_separator(word: &String) -> bool {
    word == SEPARATOR
}

fn nanoseconds(text: &str) -> Option<Duration> {
    text.parse().ok().map(Duration::from_nanos)
}

fn run(words: &[String]) -> String {
    words.split_first().map(|(name, rest)| output_of(name, rest)).unwrap_or_default()
}

fn timed(words: &[String]) -> String {
    let begun = now_ns();
    let said = run(words);
    format!("{said}took {} ns\n", now_ns().saturating_sub(begun))
}

fn amid(after: Duration, first: &[String], second: &[String]) -> String {
    thread::scope(|scope| {
        let running = scope.spawn(|| run(first));
        sleep(after);
        let other = run(second);
        running.join().unwrap_or_default() + &other
    })
}
