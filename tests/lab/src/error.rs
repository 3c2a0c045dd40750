//! The errors of the lab.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error as ThisError;

use crate::command::last_lines;

/// A failure of the lab, or of a request to the agent in L1.
#[derive(Debug, ThisError)]
pub enum Error {
    /// An action on a file or folder of the host failed.
    #[error("{action} {}: {source}", path.display())]
    File {
        /// The action, a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A command could not be run, or failed.
    #[error("`{command}` failed: {why}")]
    Command {
        /// The command line.
        command: String,
        /// The status and the end of the output, or why the command could not be run.
        why: String,
    },
    /// The host's Debian has no package of such a kernel.
    #[error(
        "found no package of a Linux {series} kernel: none of {tried} depends on one \
         (the lab needs Debian 12 or later)"
    )]
    NoKernelPackage {
        /// The series, such as `6.12`.
        series: &'static str,
        /// The metapackages that were tried.
        tried: String,
    },
    /// The user chose a kernel for another architecture than the chosen one.
    #[error("{kernel} is not for {arch}: leave out --kernel or --arch")]
    OtherArch {
        /// The kernel.
        kernel: &'static str,
        /// The architecture.
        arch: &'static str,
    },
    /// The bench has a part that needs a PC.
    #[error("on {0} the bench has only the part `start`: cargo lab bench start --arch {0}")]
    OnlyStart(&'static str),
    /// The host is not a Debian that has backports.
    #[error("{0} names no release of Debian, so there are no backports")]
    NoBackports(String),
    /// apt knows no mirror of Debian.
    #[error("apt has no mirror of Debian (the lab needs Debian 12 or later)")]
    NoMirror,
    /// The kernel's package lacks a module.
    #[error("the kernel has no module {0:?}")]
    NoModule(String),
    /// The emulated machine printed and answered nothing for too long, or its kernel reported a
    /// hang.
    #[error(
        "the emulated machine made no progress for {seconds} s; the end of its output:\n{console}"
    )]
    Stalled {
        /// The time without progress, by the host's clock.
        seconds: u64,
        /// The end of the machine's output.
        console: String,
    },
    /// The emulated machine ended without a request.
    #[error("the emulated machine ended unexpectedly; the end of its output:\n{console}")]
    Gone {
        /// The end of the machine's output.
        console: String,
    },
    /// A request to the agent in L1 failed.
    #[error("in L1: {0}")]
    Refused(String),
    /// The agent sent another kind of answer than the request has.
    #[error("the agent in L1 sent an unexpected answer: {0}")]
    UnexpectedAnswer(String),
    /// A text is not the expected JSON.
    #[error("cannot convert {what} from or to JSON: {source}")]
    Json {
        /// What the text is.
        what: &'static str,
        /// The cause.
        source: serde_json::Error,
    },
    /// QEMU's monitor rejected a command, or its connection ended.
    #[error("QEMU's monitor: {command}: {why}")]
    Monitor {
        /// The command, or the message that the lab waited for.
        command: String,
        /// The monitor's error, or the cause.
        why: String,
    },
    /// The VMM's log differs from what the test expects.
    #[error("{0}")]
    Log(String),
    /// A machine needs programs, and the lab was set up without.
    #[error("this lab was set up without programs")]
    NoPrograms,
    /// The kernel's source lacks the line that the guard against double interrupts replaces.
    #[error("{} lacks the line that the guard replaces; is this Linux 6.12?", .0.display())]
    NoGuard(PathBuf),
    /// Packages are missing, and only root can install them.
    #[error(
        "missing packages: {0}; run the lab as root, which installs them, or run: \
         apt-get install -y {0}"
    )]
    NotRoot(String),
}

impl Error {
    /// Adds the end of a program's output to an error of the machine that it ran on.
    #[must_use]
    pub fn after(self, printed: &str) -> Self {
        let with = |console: String| {
            format!("{console}\n--- output of the program in L1:\n{}", last_lines(printed, 15))
        };
        match self {
            Self::Stalled { seconds, console } => Self::Stalled { seconds, console: with(console) },
            Self::Gone { console } => Self::Gone { console: with(console) },
            other => other,
        }
    }

    /// Makes an error of an action on a file, for `map_err`.
    pub fn file(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::File { action, path, source }
    }

    /// Makes an error of a conversion, for `map_err`.
    pub fn json(what: &'static str) -> impl FnOnce(serde_json::Error) -> Self {
        move |source| Self::Json { what, source }
    }
}
