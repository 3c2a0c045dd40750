//! Files that the command line names by path or by inherited file descriptor.

use std::convert::Infallible;
use std::ffi::OsString;
use std::os::fd::RawFd;

use crate::config::Source;

/// `fd=N`, or a path. `./fd=N` names a file called `fd=N`.
pub(crate) fn parse(text: OsString) -> Result<Source, Infallible> {
    let number = text.to_str().and_then(fd);
    Ok(number.map_or_else(|| Source::Path(text.into()), Source::Fd))
}

/// The number in `fd=N`.
pub(crate) fn fd(text: &str) -> Option<RawFd> {
    text.strip_prefix("fd=")?.parse::<u16>().ok().map(RawFd::from)
}

/// `fd=N`, and nothing else.
pub(crate) fn parse_fd(text: &str) -> Result<RawFd, &'static str> {
    fd(text).ok_or("fd=N is needed: the number of a file descriptor that the VMM inherits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_fd_and_treats_other_texts_as_paths() {
        let parsed = |text: &str| parse(text.into()).unwrap();
        assert_eq!(parsed("fd=3"), Source::Fd(3));
        for path in ["/boot/vmlinuz", "./fd=3", "fd=", "fd=-1", "fd=x", "fd=3x"] {
            assert_eq!(parsed(path), Source::Path(path.into()));
        }
        assert_eq!([parsed("fd=3"), parsed("k")].map(|source| source.to_string()), ["fd=3", "k"]);
    }
}
