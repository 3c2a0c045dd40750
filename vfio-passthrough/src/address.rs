//! Newtypes for the places things are at: PCI functions, I/O virtual addresses, BARs, byte ranges.

use std::fmt;
use std::path::Path;
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
#[error(
    "'{0}' is not a PCI address: write it as 0000:01:00.0 or as /sys/bus/pci/devices/0000:01:00.0"
)]
pub struct ParsePciAddressError(String);

impl PciAddress {
    /// From the numbers by which the kernel tells it: `devfn` is device and function in one byte (PCI_DEVFN of
    /// linux/pci.h).
    pub(crate) const fn new(domain: u32, bus: u8, devfn: u8) -> Self {
        Self { domain, bus, device: devfn >> 3, function: devfn & 0b111 }
    }

    /// The address of a sysfs folder such as `/sys/bus/pci/devices/0000:01:00.0`; a link to one is followed
    /// by its last component only.
    pub fn from_sysfs_path(path: &Path) -> Result<Self, ParsePciAddressError> {
        let name = path.file_name().and_then(|name| name.to_str());
        name.ok_or_else(|| ParsePciAddressError(path.display().to_string()))?.parse()
    }

    fn parse(text: &str) -> Option<Self> {
        let (rest, function) = text.rsplit_once('.')?;
        let (rest, device) = rest.rsplit_once(':')?;
        // lspci leaves domain 0 out.
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

/// A hexadecimal number of so many digits; `u32::from_str_radix` alone would take a sign.
fn hex(text: &str, digits: std::ops::RangeInclusive<usize>) -> Option<u32> {
    let plain = digits.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    plain.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

impl FromStr for PciAddress {
    type Err = ParsePciAddressError;

    /// Takes `0000:01:00.0`, `01:00.0` (domain 0), or a path that ends in the former.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name = text.trim_end_matches('/').rsplit('/').next().unwrap_or(text);
        Self::parse(name).ok_or_else(|| ParsePciAddressError(text.to_owned()))
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{}", self.domain, self.bus, self.device, self.function)
    }
}

/// An I/O virtual address: what a device puts on the bus, translated by the IOMMU. In bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Iova(pub u64);

impl fmt::Display for Iova {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// One of the six base address registers of a type 0 header (PCI 3.0, 6.2.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BarIndex(u8);

impl BarIndex {
    /// How many BARs a type 0 header has.
    pub const COUNT: u8 = 6;

    /// The expansion ROM's register, which is like a BAR in all but its place (PCI 6.2.5.2).
    pub const ROM: Self = Self(6);

    /// The BAR of this number, 0 to 5.
    pub const fn new(index: u8) -> Option<Self> {
        if index < Self::COUNT { Some(Self(index)) } else { None }
    }

    /// The six BARs, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT).map(Self)
    }

    /// The number, 0 to 5, and 6 for the ROM. VFIO gives its regions the same ones
    /// (`VFIO_PCI_BAR0_REGION_INDEX`, `VFIO_PCI_ROM_REGION_INDEX`).
    pub const fn number(self) -> u8 {
        self.0
    }

    /// The register that follows, which a 64-bit BAR uses for its upper half.
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).and_then(Self::new)
    }
}

impl fmt::Display for BarIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ROM { f.write_str("ROM") } else { write!(f, "BAR{}", self.0) }
    }
}

/// A range of bytes, never one that wraps: `start + size` is at most `u64::MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteRange {
    start: u64,
    size: u64,
}

impl ByteRange {
    /// `size` bytes from `start` on, or `None` where their end does not fit 64 bits.
    pub const fn new(start: u64, size: u64) -> Option<Self> {
        match start.checked_add(size) {
            Some(_) => Some(Self { start, size }),
            None => None,
        }
    }

    /// The bytes from `start` up to `end`, without it; empty where `end` is not above `start`.
    pub const fn between(start: u64, end: u64) -> Self {
        Self { start, size: end.saturating_sub(start) }
    }

    /// The first byte.
    pub const fn start(self) -> u64 {
        self.start
    }

    /// How many bytes.
    pub const fn size(self) -> u64 {
        self.size
    }

    /// The first byte after the range.
    pub const fn end(self) -> u64 {
        // `new` and `between` made sure that this does not saturate.
        self.start.saturating_add(self.size)
    }

    /// True for a range of no bytes.
    pub const fn is_empty(self) -> bool {
        self.size == 0
    }

    /// Where `address` lies in the range.
    pub fn offset_of(self, address: u64) -> Option<u64> {
        address.checked_sub(self.start).filter(|offset| *offset < self.size)
    }

    /// True where every byte of `other` is one of this range.
    pub const fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.end() <= self.end()
    }

    /// True where the ranges share a byte.
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end()
            && other.start < self.end()
            && !self.is_empty()
            && !other.is_empty()
    }

    /// The range less the bytes of `other`: what is before it and what is after it, empty ones left out.
    pub fn without(self, other: Self) -> impl Iterator<Item = Self> {
        let parts = if self.overlaps(other) {
            [Self::between(self.start, other.start), Self::between(other.end(), self.end())]
        } else {
            [self, Self::between(0, 0)]
        };
        parts.into_iter().filter(|part| !part.is_empty())
    }

    /// The largest range inside this one whose start and end are multiples of `unit`, a power of two.
    pub fn shrink_to(self, unit: u64) -> Self {
        let mask = unit.saturating_sub(1);
        match self.start.checked_add(mask) {
            Some(start) => Self::between(start & !mask, self.end() & !mask),
            None => Self::between(self.start, self.start),
        }
    }

    /// The smallest range around this one whose start and end are multiples of `unit`, a power of two.
    pub fn grow_to(self, unit: u64) -> Self {
        let mask = unit.saturating_sub(1);
        Self::between(self.start & !mask, self.end().saturating_add(mask) & !mask)
    }
}

impl fmt::Display for ByteRange {
    /// Both ends included, as `/proc/iomem` shows ranges.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.size.checked_sub(1) {
            Some(last) => write!(f, "{:#x}-{:#x}", self.start, self.start.saturating_add(last)),
            None => write!(f, "{:#x} (empty)", self.start),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_are_read_in_every_form_that_people_have_at_hand() {
        let address = PciAddress { domain: 0, bus: 1, device: 0x1f, function: 7 };
        for text in [
            "0000:01:1f.7",
            "01:1f.7",
            "/sys/bus/pci/devices/0000:01:1f.7",
            "/sys/bus/pci/devices/0000:01:1f.7/",
        ] {
            assert_eq!(text.parse(), Ok(address), "{text}");
        }
        assert_eq!(address.to_string(), "0000:01:1f.7");
        assert_eq!("10000:e1:00.0".parse::<PciAddress>().unwrap().to_string(), "10000:e1:00.0");
    }

    #[test]
    fn other_texts_are_refused_and_named() {
        for text in [
            "",
            "nvme0",
            "01:00",
            "01:20.0",
            "01:00.8",
            "0000:1:00.0",
            "+000:01:00.0",
            "0000:01:00.0.0",
            "00000000f:01:00.0",
        ] {
            let error = text.parse::<PciAddress>().unwrap_err();
            assert!(error.to_string().contains(&format!("'{text}'")), "{error}");
        }
    }

    #[test]
    fn a_range_does_not_wrap() {
        assert_eq!(ByteRange::new(u64::MAX, 1), None);
        assert_eq!(ByteRange::new(u64::MAX, 0).map(ByteRange::end), Some(u64::MAX));
        assert_eq!(ByteRange::between(0x1000, 0x3000).to_string(), "0x1000-0x2fff");
    }

    proptest! {
        #[test]
        fn what_is_left_of_a_range_is_inside_it_and_outside_the_other(a in 0u64..64, b in 0u64..64, c in 0u64..64, d in 0u64..64) {
            let (whole, cut) = (ByteRange::between(a, b), ByteRange::between(c, d));
            let parts: Vec<_> = whole.without(cut).collect();
            for byte in 0..64 {
                let expected = whole.offset_of(byte).is_some() && cut.offset_of(byte).is_none();
                let found = parts.iter().filter(|part| part.offset_of(byte).is_some()).count();
                prop_assert_eq!(found, usize::from(expected), "byte {}", byte);
            }
        }

        #[test]
        fn rounding_goes_the_right_way(start in 0u64..1 << 40, size in 0u64..1 << 40, shift in 0u32..31) {
            let (range, unit) = (ByteRange::between(start, start + size), 1u64 << shift);
            let (inner, outer) = (range.shrink_to(unit), range.grow_to(unit));
            prop_assert!(outer.contains(range));
            prop_assert!(inner.is_empty() || range.contains(inner));
            for edge in [outer.start(), outer.end()] {
                prop_assert_eq!(edge % unit, 0);
            }
            prop_assert!(inner.is_empty() || (inner.start() % unit == 0 && inner.end() % unit == 0));
        }
    }
}
