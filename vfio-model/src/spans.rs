//! Ranges of IOVAs with their last address, as iommufd has them: a range may end at 2^64 - 1.

use crate::errno::errno;

/// `struct iommu_iova_range`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span {
    pub first: u64,
    pub last: u64,
}

/// All addresses.
pub(crate) const ALL: Span = Span { first: 0, last: u64::MAX };

impl Span {
    /// The range of `length` bytes, which are not 0.
    ///
    /// # Errors
    ///
    /// `EOVERFLOW`: its end does not fit into 64 bits.
    pub fn sized(first: u64, length: u64) -> std::io::Result<Self> {
        let last = first.checked_add(length.saturating_sub(1));
        last.map(|last| Self { first, last }).ok_or_else(|| errno(libc::EOVERFLOW))
    }

    /// The number of bytes; 2^64 - 1 for all addresses.
    pub fn length(self) -> u64 {
        self.last.wrapping_sub(self.first).saturating_add(1)
    }

    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    pub fn contains(self, other: Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }
}

/// The parts of a range that none of `used` has, in order.
pub(crate) fn holes(within: Span, used: impl IntoIterator<Item = Span>) -> Vec<Span> {
    let mut used: Vec<Span> = used.into_iter().filter(|span| span.overlaps(within)).collect();
    used.sort_unstable();
    let mut holes = Vec::new();
    let mut at = Some(within.first);
    for span in used {
        let Some(first) = at else { break };
        if first < span.first {
            holes.push(Span { first, last: span.first.saturating_sub(1) });
        }
        at = span.last.checked_add(1).map(|next| next.max(first));
    }
    match at {
        Some(first) if first <= within.last => holes.push(Span { first, last: within.last }),
        _ => {}
    }
    holes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn holes_are_what_no_range_has(
            used in prop::collection::vec((0u64..64, 0u64..16), 0..6), end in 0u64..64,
        ) {
            let used: Vec<_> =
                used.iter().map(|(first, more)| Span { first: *first, last: first + more }).collect();
            let holes = holes(Span { first: 0, last: end }, used.iter().copied());
            for byte in 0..=80 {
                let byte = Span { first: byte, last: byte };
                let is_free = byte.last <= end && !used.iter().any(|span| span.overlaps(byte));
                prop_assert_eq!(holes.iter().filter(|hole| hole.overlaps(byte)).count(), usize::from(is_free));
            }
        }
    }

    #[test]
    fn a_range_that_ends_at_the_last_address_leaves_no_hole_behind_it() {
        let used = Span { first: 8, last: u64::MAX };
        assert_eq!(holes(ALL, [used]), [Span { first: 0, last: 7 }]);
        assert_eq!(holes(ALL, [ALL, used]), []);
    }
}
