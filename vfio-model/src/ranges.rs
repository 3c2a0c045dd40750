//! Ranges of addresses. A range whose end is not above its start is empty.

use std::ops::Range;

/// The range of `size` bytes from `start` on; `None` where its end does not fit into 64 bits.
pub(crate) fn sized(start: u64, size: u64) -> Option<Range<u64>> {
    start.checked_add(size).map(|end| start..end)
}

/// The last byte of a range that is not empty. An end of 2^64 - 1 stands for 2^64, because ranges of
/// IOVAs end at pages.
pub(crate) fn last(range: &Range<u64>) -> u64 {
    match range.end {
        u64::MAX => u64::MAX,
        end => end.saturating_sub(1),
    }
}

/// Whether two ranges share a byte.
pub(crate) fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    !one.is_empty() && !other.is_empty() && one.start < other.end && other.start < one.end
}

/// The parts of a range outside a hole, without empty ones.
pub(crate) fn without(range: Range<u64>, hole: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let parts = match overlap(&range, hole) {
        true => [range.start..hole.start, hole.end..range.end],
        false => [range, 0..0],
    };
    parts.into_iter().filter(|part| !part.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_are_inside_the_range_and_outside_the_hole(
            a in 0u64..64, b in 0u64..64, c in 0u64..64, d in 0u64..64,
        ) {
            let parts: Vec<_> = without(a..b, &(c..d)).collect();
            for byte in 0..64 {
                let expected = (a..b).contains(&byte) && !(c..d).contains(&byte);
                let found = parts.iter().filter(|part| part.contains(&byte)).count();
                prop_assert_eq!(found, usize::from(expected), "byte {}", byte);
            }
        }
    }
}
