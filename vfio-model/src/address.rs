//! Addresses of PCI functions.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// The address of a PCI function, `dddd:bb:dd.f`: domain, bus, device (0-31), function (0-7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

/// A text that is not a PCI address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a PCI address: write it as 0000:01:00.0")]
pub struct ParsePciAddressError(String);

impl PciAddress {
    /// An address from numbers; `devfn` is device and function in one byte (`PCI_DEVFN`).
    pub const fn new(domain: u32, bus: u8, devfn: u8) -> Self {
        Self { domain, bus, device: devfn >> 3, function: devfn & 0b111 }
    }

    /// The low 16 bits of the domain, as `struct vfio_pci_dependent_device` has them.
    pub(crate) const fn segment(self) -> u16 {
        let [_, _, high, low] = self.domain.to_be_bytes();
        u16::from_be_bytes([high, low])
    }

    pub(crate) const fn bus(self) -> u8 {
        self.bus
    }

    /// Device and function in one byte (`PCI_DEVFN`).
    pub(crate) const fn devfn(self) -> u8 {
        self.device << 3 | self.function
    }

    fn parse(text: &str) -> Option<Self> {
        let (rest, function) = text.rsplit_once('.')?;
        let (rest, device) = rest.rsplit_once(':')?;
        let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0000", rest));
        let address = Self {
            domain: hex(domain, 4..=8)?,
            bus: u8::try_from(hex(bus, 2..=2)?).ok()?,
            device: u8::try_from(hex(device, 2..=2)?).ok()?,
            function: u8::try_from(hex(function, 1..=1)?).ok()?,
        };
        (address.device < 32 && address.function < 8).then_some(address)
    }
}

/// A hexadecimal number with this many digits; `u32::from_str_radix` alone would accept a sign.
fn hex(text: &str, digits: RangeInclusive<usize>) -> Option<u32> {
    let plain = digits.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    plain.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

impl FromStr for PciAddress {
    type Err = ParsePciAddressError;

    /// Parses `0000:01:00.0` or `01:00.0` (domain 0).
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text).ok_or_else(|| ParsePciAddressError(text.to_owned()))
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_addresses_with_and_without_a_domain() {
        for text in ["0000:01:1f.7", "01:1f.7"] {
            let address: PciAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), "0000:01:1f.7");
        }
        let far: PciAddress = "10000:e1:00.0".parse().unwrap();
        assert_eq!(far.to_string(), "10000:e1:00.0");
    }

    #[test]
    fn refuses_other_texts_and_names_them() {
        for text in ["", "nvme0", "01:00", "01:20.0", "01:00.8", "0000:1:00.0", "+000:01:00.0"] {
            let error = text.parse::<PciAddress>().unwrap_err();
            assert!(error.to_string().contains(&format!("'{text}'")), "{error}");
        }
    }
}
