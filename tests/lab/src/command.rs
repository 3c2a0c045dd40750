//! Programs of the host's, run to their end.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::Error;

/// A program with its arguments, and what it is expected to do: succeed.
pub struct Tool(Command);

impl Tool {
    /// Nothing is read from the terminal.
    #[must_use]
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.stdin(Stdio::null());
        Self(command)
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.0.args(arguments);
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.0.env(name, value);
        self
    }

    /// Takes a variable away.
    #[must_use]
    pub fn without_env(mut self, name: &str) -> Self {
        self.0.env_remove(name);
        self
    }

    /// Runs it in this folder.
    #[must_use]
    pub fn folder(mut self, folder: &Path) -> Self {
        self.0.current_dir(folder);
        self
    }

    /// Runs it in silence; what it says is in the error if it fails.
    pub fn run(self) -> Result<(), Error> {
        self.output().map(|_| ())
    }

    /// Runs it and returns its standard output.
    pub fn output(mut self) -> Result<Vec<u8>, Error> {
        let output = self.0.output().map_err(|error| self.failure(&error.to_string()))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(self.failure(&said(&output)))
    }

    /// The command itself, for those who follow its output.
    #[must_use]
    pub fn into_command(self) -> Command {
        self.0
    }

    fn failure(&self, why: &str) -> Error {
        Error::Command { command: shown(&self.0), why: why.to_owned() }
    }
}

/// A command as one would type it.
#[must_use]
pub fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// Its status and the last lines that it printed.
fn said(output: &Output) -> String {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    format!("{}\n{}", output.status, last_lines(&String::from_utf8_lossy(&text), 15))
}

/// The end of a text.
#[must_use]
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_the_program_said() {
        let error =
            Tool::new("sh").args(["-c", "echo sorry >&2; exit 3"]).run().unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("sorry"), "{error}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = Tool::new("/no/such/program").run().unwrap_err().to_string();
        assert!(error.contains("/no/such/program"), "{error}");
    }

    #[test]
    fn the_last_lines_of_a_short_text_are_all_of_it() {
        assert_eq!(last_lines("a\nb\nc", 2), "b\nc");
        assert_eq!(last_lines("a", 2), "a");
    }
}
