//! `--vfio`: a device and the options of its assignment.

use std::path::PathBuf;
use std::str::FromStr;

use devices::{FUNCTIONS, SLOTS};
use thiserror::Error;
use vfio_passthrough::ResetPolicy;
use vfio_passthrough::context::ParseVfTokenError;

use super::source;
use crate::config::{Passthrough, Place};

/// A value of `--vfio` that is not valid.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum PassthroughError {
    /// The option does not exist.
    #[error(
        "unknown option '{0}': the options are reset=none, p2p=off, at=SLOT.FUNCTION, vf-token=UUID and fd=N"
    )]
    UnknownOption(String),
    /// The device is missing.
    #[error("name a device: its sysfs path or its address")]
    NoDevice,
    /// The token is no UUID.
    #[error("vf-token: {0}")]
    NoToken(#[from] ParseVfTokenError),
    /// The place is none of the guest's bus.
    #[error(
        "at={0}: give SLOT or SLOT.FUNCTION as lspci prints them, such as at=05 or at=05.1: a slot \
         from 01 to 1f in hexadecimal (00 is the host bridge's), and a function from 0 to 7"
    )]
    NoPlace(String),
}

/// `SLOT` or `SLOT.FUNCTION`, as in an address of the host.
fn place(text: &str) -> Option<Place> {
    let (slot, function) = match text.split_once('.') {
        Some((slot, function)) => (slot, Some(hex(function, 1, FUNCTIONS)?)),
        None => (text, None),
    };
    let slot = hex(slot, 2, SLOTS).filter(|slot| *slot != 0)?;
    Some(Place { slot, function })
}

/// A hexadecimal number of at most `digits` digits below `end`.
fn hex(text: &str, digits: usize, end: u8) -> Option<u8> {
    let plain = text.len() <= digits && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    u8::from_str_radix(text, 16).ok().filter(|number| plain && *number < end)
}

impl FromStr for Passthrough {
    type Err = PassthroughError;

    fn from_str(text: &str) -> Result<Self, PassthroughError> {
        let mut parts = text.split(',');
        let first = parts.next().filter(|path| !path.is_empty());
        let first = first.ok_or(PassthroughError::NoDevice)?;
        let file = source::fd(first);
        let path = file.is_none().then(|| PathBuf::from(first));
        let reset = ResetPolicy::Required;
        let mut own = Self { path, file, reset, p2p: true, vf_token: None, at: None };
        parts.try_for_each(|option| own.option(option))?;
        Ok(own)
    }
}

impl Passthrough {
    fn option(&mut self, option: &str) -> Result<(), PassthroughError> {
        let unknown = || PassthroughError::UnknownOption(option.to_owned());
        match option.split_once('=').ok_or_else(unknown)? {
            ("reset", "none") => self.reset = ResetPolicy::IfPossible,
            ("p2p", "off") => self.p2p = false,
            ("at", text) => {
                let no_place = || PassthroughError::NoPlace(text.to_owned());
                self.at = Some(place(text).ok_or_else(no_place)?);
            }
            ("vf-token", text) => self.vf_token = Some(text.parse()?),
            _ => self.file = Some(source::fd(option).ok_or_else(unknown)?),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_devices_and_their_options() {
        let device = |path: &str| Passthrough {
            path: Some(path.into()),
            file: None,
            reset: ResetPolicy::Required,
            p2p: true,
            vf_token: None,
            at: None,
        };
        let token = "bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3";
        let with_token = format!("01:00.1,vf-token={token}");
        let vf_token = Some(token.parse().unwrap());
        let none = ResetPolicy::IfPossible;
        let unknown = |option: &str| Err(PassthroughError::UnknownOption(option.to_owned()));
        let fd = Passthrough { path: None, file: Some(3), reset: none, ..device("") };
        let at = |slot, function| Some(Place { slot, function });
        let cases = [
            ("/sys/d", Ok(device("/sys/d"))),
            ("01:00.0,reset=none", Ok(Passthrough { reset: none, ..device("01:00.0") })),
            ("01:00.0,p2p=off", Ok(Passthrough { p2p: false, ..device("01:00.0") })),
            (
                "01:00.0,p2p=off,reset=none",
                Ok(Passthrough { reset: none, p2p: false, ..device("01:00.0") }),
            ),
            ("01:00.0,fd=3", Ok(Passthrough { file: Some(3), ..device("01:00.0") })),
            ("fd=3,reset=none", Ok(fd)),
            ("01:00.1,at=05.1", Ok(Passthrough { at: at(5, Some(1)), ..device("01:00.1") })),
            ("01:00.1,at=1f", Ok(Passthrough { at: at(0x1f, None), ..device("01:00.1") })),
            (with_token.as_str(), Ok(Passthrough { vf_token, ..device("01:00.1") })),
            ("01:00.1,vf-token=", Err(PassthroughError::NoToken(ParseVfTokenError))),
            ("01:00.1,vf-token=bd8d9d2b", Err(PassthroughError::NoToken(ParseVfTokenError))),
            ("01:00.0,fd=x", unknown("fd=x")),
            ("01:00.0,p2p=on", unknown("p2p=on")),
            ("01:00.0,reset=", unknown("reset=")),
            ("01:00.0,at", unknown("at")),
            ("01:00.0,", unknown("")),
            (",reset=none", Err(PassthroughError::NoDevice)),
            ("", Err(PassthroughError::NoDevice)),
        ];
        cases
            .into_iter()
            .for_each(|(text, expected)| assert_eq!(text.parse(), expected, "{text:?}"));
    }

    #[test]
    fn places_are_as_lspci_prints_them() {
        let cases = [
            ("05.1", Some((5, Some(1)))),
            ("5.7", Some((5, Some(7)))),
            ("1F", Some((0x1f, None))),
            ("10", Some((0x10, None))),
            ("00", None),
            ("00.1", None),
            ("20", None),
            ("0x5", None),
            ("005", None),
            ("05.8", None),
            ("05.", None),
            ("05.01", None),
            (".1", None),
            ("+5", None),
            ("00:05.1", None),
            ("", None),
        ];
        for (text, expected) in cases {
            let found = place(text).map(|place| (place.slot, place.function));
            assert_eq!(found, expected, "{text:?}");
        }
        let refused = "01:00.0,at=20.0".parse::<Passthrough>().unwrap_err().to_string();
        assert_eq!(
            refused,
            "at=20.0: give SLOT or SLOT.FUNCTION as lspci prints them, such as at=05 or at=05.1: a \
             slot from 01 to 1f in hexadecimal (00 is the host bridge's), and a function from 0 to 7"
        );
    }
}
