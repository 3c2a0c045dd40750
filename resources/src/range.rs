//! Ranges of addresses and ports, and the subtraction of such ranges.

use std::fmt;

/// The range `start..start + size` of addresses or ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressRange {
    /// The first address.
    pub start: u64,
    /// The number of addresses.
    pub size: u64,
}

impl Default for AddressRange {
    fn default() -> Self {
        Self::new(0, 0)
    }
}

impl AddressRange {
    /// The range of `size` addresses from `start` on.
    pub const fn new(start: u64, size: u64) -> Self {
        Self { start, size }
    }

    /// The range from `first` to `last`, both included; empty if `last` is below `first`.
    ///
    /// `size` cannot hold 2^64, so the range of all addresses loses its last one.
    pub const fn inclusive(first: u64, last: u64) -> Self {
        let size = match last.checked_sub(first) {
            Some(distance) => distance.saturating_add(1),
            None => 0,
        };
        Self { start: first, size }
    }

    /// The range from `start` to `end`, without `end`; empty if `end` is below `start`.
    pub const fn between(start: u64, end: u64) -> Self {
        Self { start, size: end.saturating_sub(start) }
    }

    /// The first address after the range.
    pub const fn end(&self) -> u64 {
        self.start.saturating_add(self.size)
    }

    /// Whether the range has no address.
    pub const fn is_empty(&self) -> bool {
        self.size == 0
    }

    /// Whether all of `other` is in the range.
    pub const fn contains(&self, other: &Self) -> bool {
        self.start <= other.start && other.end() <= self.end()
    }

    /// Whether the two ranges share an address.
    pub const fn overlaps(&self, other: &Self) -> bool {
        !self.intersection(other).is_empty()
    }

    /// The addresses that both ranges have.
    pub const fn intersection(&self, other: &Self) -> Self {
        let start = if self.start > other.start { self.start } else { other.start };
        let end = if self.end() < other.end() { self.end() } else { other.end() };
        Self::between(start, end)
    }

    /// The range without the addresses below the first multiple of `align`, a power of two.
    pub const fn aligned(&self, align: u64) -> Self {
        let mask = align.wrapping_sub(1);
        match self.start.checked_add(mask) {
            Some(start) => Self::between(start & !mask, self.end()),
            None => Self::new(self.start, 0),
        }
    }

    /// The parts of the range below and above `hole`.
    fn without(&self, hole: &Self) -> [Self; 2] {
        let below = Self::between(self.start, self.end().min(hole.start));
        let above = Self::between(self.start.max(hole.end()), self.end());
        [below, above]
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.start, self.end().saturating_sub(1))
    }
}

/// The parts of `ranges` that are in none of `holes`.
pub(crate) fn subtract(ranges: Vec<AddressRange>, holes: &[AddressRange]) -> Vec<AddressRange> {
    let cut = |ranges: Vec<AddressRange>, hole: &AddressRange| {
        let parts = ranges.iter().flat_map(|range| range.without(hole));
        parts.filter(|part| !part.is_empty()).collect()
    };
    holes.iter().filter(|hole| !hole.is_empty()).fold(ranges, cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subtracting_a_hole_cuts_a_range_in_two() {
        let left = subtract(vec![AddressRange::new(0, 100)], &[AddressRange::new(10, 5)]);
        assert_eq!(left, [AddressRange::new(0, 10), AddressRange::new(15, 85)]);
    }

    #[test]
    fn subtracts_holes_that_cover_an_end_or_all() {
        let all = vec![AddressRange::new(10, 10)];
        assert_eq!(subtract(all.clone(), &[AddressRange::new(0, 15)]), [AddressRange::new(15, 5)]);
        assert_eq!(subtract(all.clone(), &[AddressRange::new(15, 15)]), [AddressRange::new(10, 5)]);
        assert_eq!(subtract(all, &[AddressRange::new(0, 100)]), []);
    }

    #[test]
    fn aligning_moves_only_the_start() {
        assert_eq!(
            AddressRange::between(0x1001, 0x3000).aligned(0x1000),
            AddressRange::between(0x2000, 0x3000)
        );
        assert!(AddressRange::between(0x2001, 0x3000).aligned(0x1000).is_empty());
        assert!(AddressRange::inclusive(u64::MAX - 1, u64::MAX).aligned(0x1000).is_empty());
    }

    #[test]
    fn displays_first_and_last_address() {
        assert_eq!(AddressRange::new(0x1000, 0x1000).to_string(), "0x1000-0x1fff");
    }
}
