//! Allocators of numbers, for memory slots and for GSIs.

use std::ops::Range;

use vm_allocator::IdAllocator;

/// An allocator of the numbers in a range. It is `None` if the range is empty.
pub(super) fn allocator(range: Range<u32>) -> Option<IdAllocator> {
    let last = range.end.checked_sub(1)?;
    IdAllocator::new(range.start, last).ok()
}
