//! `--vfio`: a device and the options of its assignment.

use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;
use vfio_passthrough::ResetPolicy;

use super::source;
use crate::config::Passthrough;

/// A value of `--vfio` that is not valid.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum PassthroughError {
    /// The option does not exist.
    #[error("unknown option '{0}': the options are reset=none, p2p=off and fd=N")]
    UnknownOption(String),
    /// The device is missing.
    #[error("name a device: its sysfs path or its address")]
    NoDevice,
}

impl FromStr for Passthrough {
    type Err = PassthroughError;

    fn from_str(text: &str) -> Result<Self, PassthroughError> {
        let mut parts = text.split(',');
        let first = parts.next().filter(|path| !path.is_empty());
        let first = first.ok_or(PassthroughError::NoDevice)?;
        let mut file = source::fd(first);
        let path = file.is_none().then(|| PathBuf::from(first));
        let (mut reset, mut p2p) = (ResetPolicy::Required, true);
        for option in parts {
            match option {
                "reset=none" => reset = ResetPolicy::IfPossible,
                "p2p=off" => p2p = false,
                other => {
                    let unknown = || PassthroughError::UnknownOption(other.to_owned());
                    file = Some(source::fd(other).ok_or_else(unknown)?);
                }
            }
        }
        Ok(Self { path, file, reset, p2p })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_devices_and_their_options() {
        let device = |path: &str, reset, p2p| {
            Ok(Passthrough { path: Some(path.into()), file: None, reset, p2p })
        };
        let (required, none) = (ResetPolicy::Required, ResetPolicy::IfPossible);
        let passed = |path: Option<&str>, reset| {
            Ok(Passthrough { path: path.map(PathBuf::from), file: Some(3), reset, p2p: true })
        };
        let unknown = |option: &str| Err(PassthroughError::UnknownOption(option.to_owned()));
        let cases = [
            ("/sys/d", device("/sys/d", required, true)),
            ("01:00.0,reset=none", device("01:00.0", none, true)),
            ("01:00.0,p2p=off", device("01:00.0", required, false)),
            ("01:00.0,p2p=off,reset=none", device("01:00.0", none, false)),
            ("01:00.0,fd=3", passed(Some("01:00.0"), required)),
            ("fd=3,reset=none", passed(None, none)),
            ("01:00.0,fd=x", unknown("fd=x")),
            ("01:00.0,p2p=on", unknown("p2p=on")),
            ("01:00.0,reset=", unknown("reset=")),
            ("01:00.0,", unknown("")),
            (",reset=none", Err(PassthroughError::NoDevice)),
            ("", Err(PassthroughError::NoDevice)),
        ];
        cases
            .into_iter()
            .for_each(|(text, expected)| assert_eq!(text.parse(), expected, "{text:?}"));
    }
}
