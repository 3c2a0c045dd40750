//! Messages on standard error. If standard error is the journal, each line starts with its level,
//! which journald parses (sd-daemon(3)).

use std::env;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;

use env_logger::{Builder, Env};
use log::Level;

/// The format of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// Text without levels.
    Plain,
    /// Lines with levels for journald.
    Journal,
}

impl Style {
    /// The style for this process's standard error.
    pub(crate) fn of_stderr() -> Self {
        let Ok(journal) = env::var("JOURNAL_STREAM") else {
            return Self::Plain;
        };
        match fs::metadata("/proc/self/fd/2").map(|file| (file.dev(), file.ino())) {
            Ok(stderr) if is_journal(&journal, stderr) => Self::Journal,
            _ => Self::Plain,
        }
    }

    /// Formats a message; each of its lines becomes one line.
    fn lines(self, level: Level, text: &str) -> String {
        match self {
            Self::Plain => format!("{text}\n"),
            Self::Journal => {
                text.lines().map(|line| format!("<{}>{line}\n", priority(level))).collect()
            }
        }
    }

    /// Writes a message that is not a log line, for example the error that ends the VMM.
    pub(crate) fn print(self, level: Level, text: &str) {
        eprint!("{}", self.lines(level, text));
    }

    /// Starts the logger with this style.
    pub(crate) fn set_up_log(self) {
        let mut log = Builder::from_env(Env::default().default_filter_or("warn"));
        log.format_timestamp(None);
        if self == Self::Journal {
            log.format(move |out, record| {
                let text = format!("{}: {}", record.target(), record.args());
                out.write_all(self.lines(record.level(), &text).as_bytes())
            });
        }
        log.init();
    }
}

/// `JOURNAL_STREAM` holds the device and inode of the stream that systemd connected. Programs with
/// another standard error inherit the variable too.
fn is_journal(variable: &str, stderr: (u64, u64)) -> bool {
    let number = |text: &str| text.parse::<u64>().ok();
    let stream = variable.split_once(':');
    stream.and_then(|(device, inode)| number(device).zip(number(inode))) == Some(stderr)
}

/// The priorities of syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recognizes_the_journal_by_device_and_inode() {
        let cases = [
            ("8:12", true),
            ("8:13", false),
            ("9:12", false),
            ("", false),
            ("8", false),
            ("8:12:1", false),
            ("x:y", false),
        ];
        cases.into_iter().for_each(|(text, expected)| {
            assert_eq!(is_journal(text, (8, 12)), expected, "{text:?}")
        });
    }

    #[test]
    fn adds_the_level_to_each_line_in_the_journal() {
        let text = "error\n  remedy";
        assert_eq!(Style::Plain.lines(Level::Error, text), "error\n  remedy\n");
        let journal = |level| Style::Journal.lines(level, text);
        assert_eq!(journal(Level::Error), "<3>error\n<3>  remedy\n");
        assert_eq!(journal(Level::Warn), "<4>error\n<4>  remedy\n");
        assert_eq!(journal(Level::Info), "<6>error\n<6>  remedy\n");
        assert_eq!(journal(Level::Debug), "<7>error\n<7>  remedy\n");
    }
}
