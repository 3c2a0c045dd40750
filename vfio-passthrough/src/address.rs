//! Addresses as types: PCI functions, I/O virtual addresses, BARs and byte ranges.

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

/// The text is not a PCI address. It holds the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is not a PCI address: write it as 0000:01:00.0 or as /sys/bus/pci/devices/0000:01:00.0"
)]
pub struct ParsePciAddressError(String);

impl PciAddress {
    /// The address in the numbers of the kernel's interfaces. `devfn` is device and function in one
    /// byte (PCI_DEVFN, linux/pci.h).
    pub(crate) const fn new(domain: u32, bus: u8, devfn: u8) -> Self {
        Self { domain, bus, device: devfn >> 3, function: devfn & 0b111 }
    }

    /// The address in the last component of a sysfs path such as
    /// `/sys/bus/pci/devices/0000:01:00.0`. The path is not resolved: a symbolic link counts by its
    /// own name.
    ///
    /// # Errors
    ///
    /// The last component is not an address.
    pub fn from_sysfs_path(path: &Path) -> Result<Self, ParsePciAddressError> {
        let name = path.file_name().and_then(|name| name.to_str());
        name.ok_or_else(|| ParsePciAddressError(path.display().to_string()))?.parse()
    }

    /// The number of the function in its device, 0 to 7.
    pub const fn function(self) -> u8 {
        self.function
    }

    /// Whether both addresses differ in the function at most: by its numbers, `other` is a function
    /// of the same device. Virtual functions (SR-IOV) have numbers of their own, so that one can
    /// have the device number of another device's functions.
    pub const fn is_same_device(self, other: Self) -> bool {
        self.domain == other.domain && self.bus == other.bus && self.device == other.device
    }

    /// Whether both addresses are on the same bus.
    pub const fn is_same_bus(self, other: Self) -> bool {
        self.domain == other.domain && self.bus == other.bus
    }

    fn parse(text: &str) -> Option<Self> {
        let (rest, function) = text.rsplit_once('.')?;
        let (rest, device) = rest.rsplit_once(':')?;
        // lspci omits domain 0.
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

/// Parses a hexadecimal number of `digits` digits. `u32::from_str_radix` alone would accept a sign.
fn hex(text: &str, digits: std::ops::RangeInclusive<usize>) -> Option<u32> {
    let plain = digits.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    plain.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

impl FromStr for PciAddress {
    type Err = ParsePciAddressError;

    /// Accepts `0000:01:00.0`, `01:00.0` (domain 0), or a path that ends in one of them.
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

/// An I/O virtual address in bytes: the address that a device uses for DMA, and that the IOMMU
/// translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Iova(pub u64);

impl fmt::Display for Iova {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// One of the six base address registers of a type 0 header (PCI 3.0, 6.2.5.1), or the ROM's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BarIndex(u8);

impl BarIndex {
    /// The number of BARs of a type 0 header, without the ROM.
    pub const COUNT: u8 = 6;

    /// The expansion ROM's base address register (PCI 3.0, 6.2.5.2). Its number is 6, as in VFIO.
    pub const ROM: Self = Self(6);

    /// The BAR with this number, or `None` if it is above 5.
    pub const fn new(index: u8) -> Option<Self> {
        if index < Self::COUNT { Some(Self(index)) } else { None }
    }

    /// The six BARs, in ascending order, without the ROM.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT).map(Self)
    }

    /// The number: 0 to 5, or 6 for the ROM. VFIO's region indexes are the same numbers
    /// (`VFIO_PCI_BAR0_REGION_INDEX` to `VFIO_PCI_ROM_REGION_INDEX`, linux/vfio.h).
    pub const fn number(self) -> u8 {
        self.0
    }

    /// The next register, which a 64-bit BAR uses for its upper half. `None` after BAR5 and for the
    /// ROM.
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).and_then(Self::new)
    }
}

impl fmt::Display for BarIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ROM { f.write_str("ROM") } else { write!(f, "BAR{}", self.0) }
    }
}

/// A range of bytes that does not wrap: `start + size` is at most `u64::MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteRange {
    start: u64,
    size: u64,
}

impl ByteRange {
    /// `size` bytes from `start` on, or `None` if the end does not fit in 64 bits.
    pub const fn new(start: u64, size: u64) -> Option<Self> {
        match start.checked_add(size) {
            Some(_) => Some(Self { start, size }),
            None => None,
        }
    }

    /// The bytes from `start` up to, but not including, `end`. The range is empty if `end` is not
    /// above `start`.
    pub const fn between(start: u64, end: u64) -> Self {
        Self { start, size: end.saturating_sub(start) }
    }

    /// The first byte.
    pub const fn start(self) -> u64 {
        self.start
    }

    /// The number of bytes.
    pub const fn size(self) -> u64 {
        self.size
    }

    /// The first byte after the range.
    pub const fn end(self) -> u64 {
        // This does not saturate: `new` and `between` checked it.
        self.start.saturating_add(self.size)
    }

    /// Whether the range has no bytes.
    pub const fn is_empty(self) -> bool {
        self.size == 0
    }

    /// The offset of `address` from the start, or `None` if the address is outside of the range.
    pub fn offset_of(self, address: u64) -> Option<u64> {
        address.checked_sub(self.start).filter(|offset| *offset < self.size)
    }

    /// Whether every byte of `other` is in this range.
    pub const fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.end() <= self.end()
    }

    /// Whether the ranges share a byte.
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end()
            && other.start < self.end()
            && !self.is_empty()
            && !other.is_empty()
    }

    /// The parts of this range before and after `other`. Empty parts are omitted.
    pub fn without(self, other: Self) -> impl Iterator<Item = Self> {
        let parts = if self.overlaps(other) {
            [Self::between(self.start, other.start), Self::between(other.end(), self.end())]
        } else {
            [self, Self::between(0, 0)]
        };
        parts.into_iter().filter(|part| !part.is_empty())
    }

    /// The largest range inside this one whose start and end are multiples of `unit`. `unit` must
    /// be a power of two.
    pub fn shrink_to(self, unit: u64) -> Self {
        let mask = unit.saturating_sub(1);
        match self.start.checked_add(mask) {
            Some(start) => Self::between(start & !mask, self.end() & !mask),
            None => Self::between(self.start, self.start),
        }
    }

    /// The smallest range around this one whose start and end are multiples of `unit`. `unit` must
    /// be a power of two.
    pub fn grow_to(self, unit: u64) -> Self {
        let mask = unit.saturating_sub(1);
        Self::between(self.start & !mask, self.end().saturating_add(mask) & !mask)
    }
}

impl fmt::Display for ByteRange {
    /// Writes the first and the last address, as `/proc/iomem` does.
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
    fn parses_short_and_long_addresses_and_sysfs_paths() {
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
    fn refuses_other_text_and_quotes_it() {
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
    fn refuses_a_range_that_wraps() {
        assert_eq!(ByteRange::new(u64::MAX, 1), None);
        assert_eq!(ByteRange::new(u64::MAX, 0).map(ByteRange::end), Some(u64::MAX));
        assert_eq!(ByteRange::between(0x1000, 0x3000).to_string(), "0x1000-0x2fff");
    }

    proptest! {
        #[test]
        fn the_difference_of_two_ranges_is_inside_the_first_and_outside_the_second(
            (a, b, c, d) in (0u64..64, 0u64..64, 0u64..64, 0u64..64),
        ) {
            let (whole, cut) = (ByteRange::between(a, b), ByteRange::between(c, d));
            let parts: Vec<_> = whole.without(cut).collect();
            for byte in 0..64 {
                let expected = whole.offset_of(byte).is_some() && cut.offset_of(byte).is_none();
                let found = parts.iter().filter(|part| part.offset_of(byte).is_some()).count();
                prop_assert_eq!(found, usize::from(expected), "byte {}", byte);
            }
        }

        #[test]
        fn rounding_goes_the_right_way(
            (start, size, shift) in (0u64..1 << 40, 0u64..1 << 40, 0u32..31),
        ) {
            let (range, unit) = (ByteRange::between(start, start + size), 1u64 << shift);
            let (inner, outer) = (range.shrink_to(unit), range.grow_to(unit));
            prop_assert!(outer.contains(range));
            prop_assert!(inner.is_empty() || range.contains(inner));
            for edge in [outer.start(), outer.end()] {
                prop_assert_eq!(edge % unit, 0);
            }
            let aligned = |range: ByteRange| (range.start() | range.end()) & (unit - 1) == 0;
            prop_assert!(inner.is_empty() || aligned(inner));
        }
    }
}
