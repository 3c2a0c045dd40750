//! VF tokens, and what is wrong when the kernel refuses one.
//!
//! The user of a physical function can disturb its virtual functions. Where vfio-pci has both
//! (`enable_sriov`), the kernel wants a proof that their users trust each other: one token, with
//! which the physical function is opened first (vfio_pci_validate_vf_token, Linux 5.7).

use std::fmt;
use std::io;
use std::str::FromStr;

use crate::address::PciAddress;

/// A VF token: a UUID that the users of a physical function and of its virtual functions share.
///
/// It is a secret of its users, so its text is not printed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct VfToken(u128);

impl fmt::Debug for VfToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VfToken(..)")
    }
}

/// The text is not a UUID. The error does not hold the text, which may be a token with a typing
/// mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a VF token is a UUID: hexadecimal digits in groups of 8, 4, 4, 4 and 12 with '-' between \
     them; 'uuidgen' makes one"
)]
pub struct ParseVfTokenError;

impl FromStr for VfToken {
    type Err = ParseVfTokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lengths = text.split('-').map(str::len);
        let digits: String = text.chars().filter(|digit| *digit != '-').collect();
        // from_str_radix alone would accept a sign.
        let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        let is_uuid = is_hex && lengths.eq([8, 4, 4, 4, 12]);
        let number = u128::from_str_radix(&digits, 16).ok().filter(|_| is_uuid);
        number.map(Self).ok_or(ParseVfTokenError)
    }
}

impl VfToken {
    /// The bytes of the UUID, in the order of its text (uuid_t).
    pub(super) fn bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// The text of the UUID, as the kernel reads it (uuid_parse). It is a secret.
    pub fn text(self) -> String {
        let digits = format!("{:032x}", self.0);
        let groups = [0..8, 8..12, 12..16, 16..20, 20..32];
        groups.map(|group| digits.get(group).unwrap_or_default().to_owned()).join("-")
    }
}

/// The name by which the kernel opens a device (vfio_pci_core_match). With a token, the name of a
/// physical function also sets it, unless virtual functions are in use: a call of
/// `VFIO_DEVICE_FEATURE_PCI_VF_TOKEN` would add nothing, and would not prove a token.
pub(super) fn name(address: PciAddress, token: Option<VfToken>) -> String {
    match token {
        None => address.to_string(),
        Some(token) => format!("{address} vf_token={}", token.text()),
    }
}

/// Why the kernel did not open a device with the token that was given, or without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VfTokenProblem {
    /// No token was given, and the device needs one.
    Missing,
    /// The token is not that of the physical function.
    Wrong,
    /// A token was given, and the device takes none.
    NotTaken,
    /// A token was given, and the kernel does not know any.
    Unknown,
    /// A token was given with iommufd, and the device or the kernel takes none.
    NotByIommufd,
}

impl VfTokenProblem {
    /// The problem of an errno of `VFIO_GROUP_GET_DEVICE_FD`; `None` if it is not about tokens.
    pub(super) fn of(error: &io::Error, token: Option<VfToken>) -> Option<Self> {
        match (error.raw_os_error()?, token) {
            (libc::EACCES, None) => Some(Self::Missing),
            (libc::EACCES, Some(_)) => Some(Self::Wrong),
            (libc::EINVAL, Some(_)) => Some(Self::NotTaken),
            // Before tokens were known, no device had such a name.
            (libc::ENODEV, Some(_)) => Some(Self::Unknown),
            _ => None,
        }
    }

    /// The kind of the errno.
    pub(super) fn kind(self) -> io::ErrorKind {
        match self {
            Self::Missing | Self::Wrong => io::ErrorKind::PermissionDenied,
            Self::NotTaken => io::ErrorKind::InvalidInput,
            Self::Unknown | Self::NotByIommufd => io::ErrorKind::Unsupported,
        }
    }

    /// The problem and its remedy. `physical` is the physical function of a virtual function.
    pub(super) fn describe(self, physical: Option<PciAddress>) -> String {
        match (self, physical) {
            (Self::Missing, Some(physical)) => format!(
                "it needs a VF token (EACCES), because its physical function {physical} is on \
                 vfio-pci: open {physical} with a token, and this device with the same one"
            ),
            (Self::Missing, None) => "it needs the VF token of its virtual functions (EACCES), \
                                      because they are in use: open it with the same token"
                .to_owned(),
            (Self::Wrong, Some(physical)) => format!(
                "the VF token is not that of its physical function {physical} (EACCES): open \
                 {physical} with this token first; while its virtual functions are in use, their \
                 token stays"
            ),
            (Self::Wrong, None) => "the VF token is not that of its virtual functions, which are \
                                    in use (EACCES): open it with their token, or end their users"
                .to_owned(),
            (Self::NotTaken, Some(physical)) => format!(
                "it takes no VF token (EINVAL), because vfio-pci did not make it: its physical \
                 function {physical} has another driver; open it without a token"
            ),
            (Self::NotTaken, None) => "it takes no VF token (EINVAL), because it has no virtual \
                                       functions and is none; open it without a token"
                .to_owned(),
            (Self::NotByIommufd, _) => {
                "the kernel refused the VF token with iommufd (EINVAL): the \
                                        device takes none, or the kernel is older than this use \
                                        of tokens; type1 takes them"
                    .to_owned()
            }
            (Self::Unknown, _) => "the kernel did not find it by a name with a VF token (ENODEV): \
                                   Linux has VF tokens since 5.7"
                .to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "0d8d9d2b-5a5f-4f5a-a211-f591514ba1f3";

    #[test]
    fn the_name_of_a_device_has_the_token() {
        let address: PciAddress = "01:00.0".parse().unwrap();
        let token = |text: &str| Some(text.parse().unwrap());
        assert_eq!(name(address, None), "0000:01:00.0");
        let expected = format!("0000:01:00.0 vf_token={TEXT}");
        assert_eq!(name(address, token(TEXT)), expected);
        assert_eq!(name(address, token(&TEXT.to_uppercase())), expected);
    }

    #[test]
    fn accepts_uuids_only_and_never_prints_them() {
        let long = format!("{TEXT}0");
        let (plain, braces) = (TEXT.replace('-', ""), format!("{{{TEXT}}}"));
        let moved = "0d8d9d2-b5a5f-4f5a-a211-f591514ba1f3";
        let (sign, other) = (TEXT.replacen('0', "+", 1), TEXT.replace('f', "g"));
        let space = format!(" {TEXT}");
        for text in ["", "-", &long, &plain, &braces, moved, &sign, &other, &space, "0d8d9d2b"] {
            assert_eq!(text.parse::<VfToken>(), Err(ParseVfTokenError), "{text:?}");
        }
        let token: VfToken = TEXT.parse().unwrap();
        assert_eq!(format!("{token:?}"), "VfToken(..)");
    }

    #[test]
    fn errnos_that_are_about_tokens_have_a_problem() {
        let given = Some(TEXT.parse().unwrap());
        let cases = [
            (libc::EACCES, None, Some(VfTokenProblem::Missing)),
            (libc::EACCES, given, Some(VfTokenProblem::Wrong)),
            (libc::EINVAL, given, Some(VfTokenProblem::NotTaken)),
            (libc::ENODEV, given, Some(VfTokenProblem::Unknown)),
            (libc::EINVAL, None, None),
            (libc::ENODEV, None, None),
            (libc::EPERM, None, None),
            (libc::EPERM, given, None),
            (libc::EIO, given, None),
        ];
        for (errno, token, expected) in cases {
            let error = io::Error::from_raw_os_error(errno);
            assert_eq!(VfTokenProblem::of(&error, token), expected, "{errno}, {token:?}");
        }
    }
}
