//! Programs on the host.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::Error;

/// A command on the host that is expected to succeed.
pub struct Tool(Command);

impl Tool {
    /// A command without arguments, and with an empty standard input.
    #[must_use]
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.stdin(Stdio::null());
        Self(command)
    }

    /// Appends arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.0.args(arguments);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.0.env(name, value);
        self
    }

    /// Sets environment variables.
    #[must_use]
    pub fn envs<'a>(mut self, variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        self.0.envs(variables);
        self
    }

    /// Removes an environment variable.
    #[must_use]
    pub fn without_env(mut self, name: &str) -> Self {
        self.0.env_remove(name);
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn folder(mut self, folder: &Path) -> Self {
        self.0.current_dir(folder);
        self
    }

    /// Runs the command without showing its output.
    ///
    /// # Errors
    ///
    /// [`Error::Command`], with the status and the end of the output, if the command fails.
    pub fn run(self) -> Result<(), Error> {
        self.output().map(|_| ())
    }

    /// Runs the command and returns its standard output; fails like [`run`](Self::run).
    pub fn output(mut self) -> Result<Vec<u8>, Error> {
        let output = self.0.output().map_err(|error| self.failure(&error.to_string()))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(self.failure(&status_and_output(&output)))
    }

    /// The command, for a caller that starts it.
    #[must_use]
    pub fn into_command(self) -> Command {
        self.0
    }

    fn failure(&self, why: &str) -> Error {
        Error::Command { command: shown(&self.0), why: why.to_owned() }
    }
}

/// The command line as text, for messages.
#[must_use]
pub fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// The status and the last lines of the output.
fn status_and_output(output: &Output) -> String {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    format!("{}\n{}", output.status, last_lines(&String::from_utf8_lossy(&text), 15))
}

/// The last `count` lines of `text`.
#[must_use]
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_has_status_and_output() {
        let error =
            Tool::new("sh").args(["-c", "echo sorry >&2; exit 3"]).run().unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("sorry"), "{error}");
    }

    #[test]
    fn error_names_a_missing_program() {
        let error = Tool::new("/no/such/program").run().unwrap_err().to_string();
        assert!(error.contains("/no/such/program"), "{error}");
    }

    #[test]
    fn last_lines_of_a_short_text_are_the_whole_text() {
        assert_eq!(last_lines("a\nb\nc", 2), "b\nc");
        assert_eq!(last_lines("a", 2), "a");
    }
}
