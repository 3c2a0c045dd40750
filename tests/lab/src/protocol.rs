//! What the lab and its agent in L1 say to each other: JSON, one message a line.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The name of the virtio-serial port that they talk over.
pub const PORT_NAME: &str = "lab";

/// The modules that the agent loads at its start, one path a line, dependencies first.
pub const MODULE_LIST: &str = "/modules.list";

/// From the lab to the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Run a program to its end.
    Run(Box<Program>),
    /// Read a file, of the kernel's or another.
    Read {
        /// Absolute.
        path: String,
    },
    /// Write a file, in folders that are made if need be.
    Write {
        /// Absolute.
        path: String,
        /// The whole of it.
        contents: String,
    },
    /// Rename a file or a device node.
    Rename {
        /// As it is called.
        from: String,
        /// As it is to be called.
        to: String,
    },
    /// Copy a file.
    Copy {
        /// What.
        from: String,
        /// As what.
        to: String,
    },
    /// Mount a file over another, which may be one of the kernel's, for as long as it is not uncovered.
    Cover {
        /// The file that is not to be seen.
        path: String,
        /// What is read in its place.
        contents: String,
    },
    /// Let a covered file be seen again.
    Uncover {
        /// As it was given.
        path: String,
    },
    /// Delete a file, if it is there.
    Remove {
        /// Absolute.
        path: String,
    },
    /// Give a file or a device node to a user, or all that are in a folder.
    Own {
        /// Absolute.
        path: String,
        /// The user's number.
        user: u32,
    },
    /// Take a PCI function from its driver and give it to another, or to none.
    Bind {
        /// `0000:00:02.0`
        address: String,
        /// The driver's name.
        driver: Option<String>,
    },
    /// Give an NVMe virtual functions, without a driver.
    VirtualFunctions {
        /// The physical function's.
        address: String,
        /// How many.
        count: u16,
    },
    /// What L1's kernel has said so far.
    KernelLog,
    /// Mount the host's root, read-only, with the kernel's file systems in it.
    Share {
        /// Where; programs run there with [`Program::root`].
        at: String,
    },
    /// Power off.
    Stop,
}

/// From the agent to the lab.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// L1 is up, modules loaded.
    Ready {
        /// L1's clock, since its kernel began.
        at_ns: u64,
        /// Why no probe keeps interrupts of L2 from coming twice, if so (see the agent's `guard`).
        unguarded: Option<String>,
    },
    /// Some of a running program's output, as it comes.
    Output {
        /// From which of the two.
        stream: Stream,
        /// What it wrote.
        text: String,
    },
    /// The program has ended.
    Finished(Box<Finished>),
    /// The file's contents.
    Contents {
        /// The whole of it.
        contents: String,
    },
    /// Done, nothing to say.
    Done,
    /// Not done.
    Failed {
        /// What and why.
        why: String,
    },
}

/// One of a program's two outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// A program to run in L1.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// The program and its arguments.
    pub arguments: Vec<String>,
    /// What it reads; then its input ends.
    pub input: String,
    /// Its limit of locked memory in bytes, if another than L1's.
    pub memlock: Option<u64>,
    /// Its limit of address space in bytes, if another than L1's.
    pub address_space: Option<u64>,
    /// Runs as this user, so without capabilities, if given.
    pub user: Option<u32>,
    /// Runs with this folder as its root, if given.
    pub root: Option<String>,
    /// Files that it inherits open: `{0}` in an argument is the first one's number, and so on. Nodes can be written to.
    pub open: Vec<String>,
    /// What to do on its output.
    pub triggers: Vec<Trigger>,
    /// A signal to send to it so many nanoseconds of L1's after exec, if it still runs then.
    pub signal_after: Option<(u64, i32)>,
}

/// Something done when a program first prints a text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Trigger {
    /// The text, in one line of the standard output.
    pub marker: String,
    /// Files to read then. `{pid}` stands for the program's process.
    pub files: Vec<String>,
    /// Requests to make then of a UNIX socket, one connection each: its path, and what is written.
    pub asks: Vec<(String, String)>,
    /// Another program to run then, with its arguments, to its end; none if empty.
    pub program: Vec<String>,
    /// A signal to send to the program then, if any.
    pub signal: Option<i32>,
}

/// How a program went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finished {
    /// Exit status or signal.
    pub ending: Ending,
    /// From exec to the end, by L1's clock.
    pub elapsed_ns: u64,
    /// For each trigger that came, what was seen.
    pub sightings: Vec<Sighting>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// By itself, with this status.
    Status(i32),
    /// By this signal.
    Signal(i32),
}

/// A trigger's text was seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sighting {
    /// The trigger's.
    pub marker: String,
    /// Since exec, by L1's clock.
    pub after_ns: u64,
    /// The trigger's files, as they were. One that could not be read is absent.
    pub files: BTreeMap<String, String>,
    /// What was answered to the trigger's requests, and what its program wrote, to either output.
    pub said: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip<T>(value: &T)
    where
        T: Serialize + for<'a> Deserialize<'a> + PartialEq + std::fmt::Debug,
    {
        let line = serde_json::to_string(value).unwrap();
        assert!(!line.contains('\n'), "a message is one line: {line}");
        assert_eq!(&serde_json::from_str::<T>(&line).unwrap(), value);
    }

    #[test]
    fn a_message_is_one_line_whatever_it_carries() {
        round_trip(&Message::Output { stream: Stream::Err, text: "a\nb\r\n\u{1b}[0m\"".into() });
        round_trip(&Message::Finished(Box::new(Finished {
            ending: Ending::Signal(9),
            elapsed_ns: 1,
            sightings: vec![Sighting { marker: "x".into(), ..Sighting::default() }],
        })));
    }

    #[test]
    fn a_request_survives_the_wire() {
        round_trip(&Request::Bind { address: "0000:00:02.0".into(), driver: None });
        round_trip(&Request::Run(Box::new(Program {
            arguments: vec!["/vmm".into(), "--cmdline".into(), "a b\n".into()],
            memlock: Some(65536),
            triggers: vec![Trigger {
                marker: "@guest".into(),
                files: vec!["/proc/{pid}/smaps".into()],
                signal: Some(9),
                ..Trigger::default()
            }],
            ..Program::default()
        })));
    }
}
