//! Numbers that are handed out and given back: of memory slots, and of GSIs.

use std::ops::Range;

use vm_allocator::IdAllocator;

/// `None` for an empty range.
pub(super) fn allocator(range: Range<u32>) -> Option<IdAllocator> {
    let last = range.end.checked_sub(1)?;
    IdAllocator::new(range.start, last).ok()
}
