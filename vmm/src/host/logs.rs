//! What the VMM says on its standard error: for a reader at a terminal, or, where that is the
//! journal, with the level in front of each line that journald takes it from (sd-daemon(3)).

use std::env;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;

use env_logger::{Builder, Env};
use log::Level;

/// What is written, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// For people.
    Plain,
    /// For journald.
    Journal,
}

impl Style {
    /// That of this process.
    pub(crate) fn of_stderr() -> Self {
        let stderr = fs::metadata("/proc/self/fd/2").map(|file| (file.dev(), file.ino()));
        let journal = env::var("JOURNAL_STREAM").unwrap_or_default();
        match stderr {
            Ok(stderr) if is_journal(&journal, stderr) => Self::Journal,
            _ => Self::Plain,
        }
    }

    /// A message as it is written: one line for each of its own.
    fn lines(self, level: Level, text: &str) -> String {
        match self {
            Self::Plain => format!("{text}\n"),
            Self::Journal => {
                text.lines().map(|line| format!("<{}>{line}\n", priority(level))).collect()
            }
        }
    }

    /// Says something that is no log line: why the VMM ends.
    pub(crate) fn say(self, level: Level, text: &str) {
        eprint!("{}", self.lines(level, text));
    }

    /// Has log lines written so.
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

/// `JOURNAL_STREAM` has the device and the inode of what systemd connected; it is inherited by
/// programs whose standard error is something else.
fn is_journal(variable: &str, stderr: (u64, u64)) -> bool {
    let number = |text: &str| text.parse::<u64>().ok();
    let stream = variable.split_once(':');
    stream.and_then(|(device, inode)| number(device).zip(number(inode))) == Some(stderr)
}

/// Those of syslog(3).
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
    fn the_journal_is_told_by_device_and_inode() {
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
    fn each_line_has_its_level_in_the_journal() {
        let text = "what\n  mends it";
        assert_eq!(Style::Plain.lines(Level::Error, text), "what\n  mends it\n");
        let journal = |level| Style::Journal.lines(level, text);
        assert_eq!(journal(Level::Error), "<3>what\n<3>  mends it\n");
        assert_eq!(journal(Level::Warn), "<4>what\n<4>  mends it\n");
        assert_eq!(journal(Level::Info), "<6>what\n<6>  mends it\n");
        assert_eq!(journal(Level::Debug), "<7>what\n<7>  mends it\n");
    }
}
