//! Files that are named on the command line, or passed in already open.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fmt;
use std::os::fd::RawFd;
use std::path::PathBuf;

/// A file to be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// To be opened.
    Path(PathBuf),
    /// Open already, by this number: `fd=N`.
    Fd(RawFd),
}

impl Source {
    /// `fd=N`, or a path. A file of such a name is `./fd=N`.
    pub fn parse(text: OsString) -> Result<Self, Infallible> {
        let number = text.to_str().and_then(fd);
        Ok(number.map_or_else(|| Self::Path(text.into()), Self::Fd))
    }

    /// The number of one that is open.
    pub fn fd(&self) -> Option<RawFd> {
        match self {
            Self::Path(_) => None,
            Self::Fd(number) => Some(*number),
        }
    }
}

/// The number in `fd=N`.
pub fn fd(text: &str) -> Option<RawFd> {
    text.strip_prefix("fd=")?.parse::<u16>().ok().map(RawFd::from)
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Fd(number) => write!(f, "fd={number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_an_open_file_and_all_else_a_path() {
        let parsed = |text: &str| Source::parse(text.into()).unwrap();
        assert_eq!(parsed("fd=3"), Source::Fd(3));
        for path in ["/boot/vmlinuz", "./fd=3", "fd=", "fd=-1", "fd=x", "fd=3x"] {
            assert_eq!(parsed(path), Source::Path(path.into()));
        }
        assert_eq!([parsed("fd=3"), parsed("k")].map(|source| source.to_string()), ["fd=3", "k"]);
    }
}
