//! The protocol between the lab and its agent in L1: JSON, one message on each line.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The name of the virtio-serial port that carries the protocol.
pub const PORT_NAME: &str = "lab";

/// The file with the modules that the agent loads at its start: one path on each line, in load
/// order.
pub const MODULE_LIST: &str = "/modules.list";

/// A request of the lab to the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Run a program to its end.
    Run(Box<Program>),
    /// Read a file, or list a folder.
    Read {
        /// The absolute path.
        path: String,
    },
    /// Write a file. Missing folders are made.
    Write {
        /// The absolute path.
        path: String,
        /// The contents of the file.
        contents: String,
    },
    /// Rename a file or a device node.
    Rename {
        /// The old path.
        from: String,
        /// The new path.
        to: String,
    },
    /// Make a symbolic link.
    Link {
        /// The path of the link.
        path: String,
        /// The path that the link names.
        target: String,
    },
    /// Copy a file.
    Copy {
        /// The path of the file.
        from: String,
        /// The path of the copy.
        to: String,
    },
    /// Mount a file over another one, such as one of sysfs, until [`Request::Uncover`].
    Cover {
        /// The path of the file to cover.
        path: String,
        /// The contents that reads return.
        contents: String,
    },
    /// Unmount what covers a file.
    Uncover {
        /// The path of the covered file.
        path: String,
    },
    /// Delete a file, if it exists.
    Remove {
        /// The absolute path.
        path: String,
    },
    /// Change the owner of a file or device node, or of all files in a folder.
    Own {
        /// The absolute path.
        path: String,
        /// The number of the user, and of the group.
        user: u32,
    },
    /// Unbind a PCI function, and bind it to a driver if one is given.
    Bind {
        /// The function's address, such as `0000:00:02.0`.
        address: String,
        /// The name of the driver.
        driver: Option<String>,
    },
    /// Make virtual functions of an NVMe, without a driver.
    VirtualFunctions {
        /// The address of the physical function.
        address: String,
        /// The number of virtual functions.
        count: u16,
    },
    /// Read the messages of L1's kernel.
    KernelLog,
    /// Mount the host's root read-only, with the kernel's file systems in it.
    Share {
        /// The mount point; [`Program::root`] runs programs there.
        at: String,
    },
    /// Power off.
    Stop,
}

/// A message of the agent to the lab.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// L1 is ready, and has loaded its modules.
    Ready {
        /// The time since the start of L1's kernel, by L1's clock.
        at_ns: u64,
        /// Why the agent could not set its guard against double interrupts (see the agent's
        /// `guard`); `None` if it could.
        unguarded: Option<String>,
    },
    /// A piece of a running program's output.
    Output {
        /// The stream that the program wrote to.
        stream: Stream,
        /// The text.
        text: String,
    },
    /// The program has ended.
    Finished(Box<Finished>),
    /// A request returned a text.
    Contents {
        /// The text.
        contents: String,
    },
    /// A request without a result succeeded.
    Done,
    /// A request failed.
    Failed {
        /// The request and the error.
        why: String,
    },
}

/// An output stream of a program.
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
    /// The whole standard input.
    pub input: String,
    /// The limit of locked memory in bytes; `None` keeps the agent's.
    pub memlock: Option<u64>,
    /// The limit of address space in bytes; `None` keeps the agent's.
    pub address_space: Option<u64>,
    /// The soft and the hard limit of open files; `None` keeps the agent's.
    pub open_files: Option<(u64, u64)>,
    /// The limits of a control group of its own: names of files and their values. None if empty.
    pub cgroup: Vec<(String, String)>,
    /// The user to run as, without capabilities; `None` is root.
    pub user: Option<u32>,
    /// The folder to use as the root; `None` is L1's root.
    pub root: Option<String>,
    /// Files that the program inherits open. `{0}` in an argument stands for the fd of the first
    /// one, and so on. Device nodes are open for writing too.
    pub open: Vec<String>,
    /// FIFOs that the agent makes before the program starts, and writes to while it runs.
    pub fifos: Vec<Fifo>,
    /// Actions on the program's output. They come in this order.
    pub triggers: Vec<Trigger>,
    /// A time in nanoseconds of L1's clock after exec, and the signal to send then, if the program
    /// still runs.
    pub signal_after: Option<(u64, i32)>,
}

/// A FIFO, and what the agent writes to it when a program reads it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fifo {
    /// The path of the FIFO. An existing one is used.
    pub path: String,
    /// The file whose contents are written.
    pub from: String,
    /// The number of zero bytes that follow.
    pub zeros: u64,
}

/// The actions when a program first prints a text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Trigger {
    /// The text, within one line of the standard output.
    pub marker: String,
    /// Files to read. `{pid}` stands for the program's process ID.
    pub files: Vec<String>,
    /// Requests to UNIX sockets, each on its own connection: the path of the socket, and the text
    /// to write.
    pub asks: Vec<(String, String)>,
    /// Another program to run to its end, with its arguments, in which `{pid}` is replaced too; none
    /// if empty.
    pub program: Vec<String>,
    /// A signal to send to the program.
    pub signal: Option<i32>,
}

/// The result of a program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finished {
    /// How the program ended.
    pub ending: Ending,
    /// The time from exec to the end, by L1's clock.
    pub elapsed_ns: u64,
    /// The results of the triggers whose text was printed.
    pub sightings: Vec<Sighting>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// It exited with this status.
    Status(i32),
    /// This signal killed it.
    Signal(i32),
}

/// The result of a trigger.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sighting {
    /// The text of the trigger.
    pub marker: String,
    /// The time from exec to the text, by L1's clock.
    pub after_ns: u64,
    /// The time from exec to the end of the trigger's actions, by L1's clock.
    pub until_ns: u64,
    /// The contents of the trigger's files by path. Files that could not be read are absent.
    pub files: BTreeMap<String, String>,
    /// The answers to the trigger's requests, then the output of its program.
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
    fn encodes_a_message_as_one_line() {
        round_trip(&Message::Output { stream: Stream::Err, text: "a\nb\r\n\u{1b}[0m\"".into() });
        round_trip(&Message::Finished(Box::new(Finished {
            ending: Ending::Signal(9),
            elapsed_ns: 1,
            sightings: vec![Sighting { marker: "x".into(), ..Sighting::default() }],
        })));
    }

    #[test]
    fn decodes_an_encoded_request() {
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
