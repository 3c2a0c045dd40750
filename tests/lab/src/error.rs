//! What can go wrong in the lab.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error as ThisError;

use crate::command::last_lines;

/// A failure of the lab, or of what it was asked to do in L1.
#[derive(Debug, ThisError)]
pub enum Error {
    /// A file or a folder of the host's.
    #[error("{action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On this.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A program of the host's could not be run, or failed.
    #[error("`{command}` failed: {why}")]
    Command {
        /// With its arguments.
        command: String,
        /// Its status, and the end of what it said.
        why: String,
    },
    /// Debian has no such kernel here.
    #[error(
        "no package of a Linux {series} kernel: {tried} name none (Debian 12 or later is needed)"
    )]
    NoKernelPackage {
        /// `6.12`
        series: &'static str,
        /// The metapackages that were asked.
        tried: String,
    },
    /// A module that the lab needs is not in the kernel's package.
    #[error("the kernel has no module {0:?}")]
    NoModule(String),
    /// The emulated machine has printed and answered nothing for too long.
    #[error(
        "the emulated machine made no progress for {seconds} s; the last of its output:\n{console}"
    )]
    Stalled {
        /// By the host's clock.
        seconds: u64,
        /// What it printed last.
        console: String,
    },
    /// The emulated machine has ended unasked.
    #[error("the emulated machine ended by itself; the last of its output:\n{console}")]
    Gone {
        /// What it printed last.
        console: String,
    },
    /// The agent in L1 could not do what it was asked.
    #[error("in L1: {0}")]
    Refused(String),
    /// An answer that the request does not have.
    #[error("the agent in L1 answered out of turn: {0}")]
    Confused(String),
    /// A message that is not JSON, or a report that is not what it should be.
    #[error("{what} cannot be read: {source}")]
    Json {
        /// Of what.
        what: &'static str,
        /// Why not.
        source: serde_json::Error,
    },
    /// QEMU's monitor refused something, or is gone.
    #[error("QEMU's monitor, {command}: {why}")]
    Monitor {
        /// The command, or what was waited for.
        command: String,
        /// Its own words.
        why: String,
    },
    /// A machine needs them.
    #[error("this lab has been set up without programs")]
    NoPrograms,
    /// The kernel's source is not what the lab knows.
    #[error("{} has no place for the guard of injections; is this Linux 6.12?", .0.display())]
    NoGuard(PathBuf),
    /// The lab must be root: for apt, and for nothing else.
    #[error("{0} is missing; as root the lab installs it, or run: apt-get install -y {0}")]
    NotRoot(String),
}

impl Error {
    /// If a machine has stopped or gone: with the end of what the program in it printed.
    #[must_use]
    pub fn after(self, printed: &str) -> Self {
        let with = |console: String| {
            format!("{console}\n--- the program in it:\n{}", last_lines(printed, 15))
        };
        match self {
            Self::Stalled { seconds, console } => Self::Stalled { seconds, console: with(console) },
            Self::Gone { console } => Self::Gone { console: with(console) },
            other => other,
        }
    }

    /// For `map_err`.
    pub fn file(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::File { action, path, source }
    }

    /// For `map_err`.
    pub fn json(what: &'static str) -> impl FnOnce(serde_json::Error) -> Self {
        move |source| Self::Json { what, source }
    }
}
