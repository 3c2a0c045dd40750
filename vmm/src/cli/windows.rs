//! `--hot-plug-windows`: the room for BARs of devices that come while the guest runs.

use std::str::FromStr;

use thiserror::Error;

use super::memory::{SizeError, bytes};
use crate::config::Windows;

/// The unit of sizes.
const MIB: u64 = 1 << 20;

/// A value of `--hot-plug-windows` that is not valid.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum WindowsError {
    /// The option does not exist.
    #[error("unknown option '{0}'\n  the options are 32=SIZE and 64=SIZE, such as 32=512M,64=1T")]
    UnknownOption(String),
    /// The size is not valid.
    #[error("{window}=: {source}")]
    Size {
        /// The option.
        window: &'static str,
        source: SizeError,
    },
    /// The size is not a multiple of 1 MiB.
    #[error("{0}=: not a multiple of 1M")]
    NotWhole(&'static str),
}

impl FromStr for Windows {
    type Err = WindowsError;

    fn from_str(text: &str) -> Result<Self, WindowsError> {
        let mut windows = Self::default();
        for option in text.split(',') {
            match option.split_once('=') {
                Some(("32", text)) => windows.memory32 = size("32", text)?,
                Some(("64", text)) => windows.memory64 = size("64", text)?,
                _ => return Err(WindowsError::UnknownOption(option.to_owned())),
            }
        }
        Ok(windows)
    }
}

fn size(window: &'static str, text: &str) -> Result<u64, WindowsError> {
    let bytes = bytes(text).map_err(|source| WindowsError::Size { window, source })?;
    match bytes % MIB {
        0 => Ok(bytes),
        _ => Err(WindowsError::NotWhole(window)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_one_or_both_sizes() {
        let default = Windows::default();
        let cases = [
            ("32=512M,64=1T", Windows { memory32: 512 << 20, memory64: 1 << 40 }),
            ("64=16G", Windows { memory64: 16 << 30, ..default }),
            ("32=0", Windows { memory32: 0, ..default }),
        ];
        cases.into_iter().for_each(|(text, windows)| assert_eq!(text.parse(), Ok(windows)));
    }

    #[test]
    fn names_what_is_wrong_and_what_is_accepted() {
        let cases = [
            ("", "unknown option ''\n  the options are 32=SIZE and 64=SIZE"),
            ("512M", "unknown option '512M'"),
            ("16=1M", "unknown option '16=1M'"),
            ("32=lots", "32=: not a size: give a number with K, M, G or T"),
            ("64=99999999999T", "64=: the size does not fit in 64 bits"),
            ("32=1500K", "32=: not a multiple of 1M"),
        ];
        for (text, part) in cases {
            let error = text.parse::<Windows>().unwrap_err().to_string();
            assert!(error.contains(part), "{part:?} is not in: {error}");
        }
    }
}
