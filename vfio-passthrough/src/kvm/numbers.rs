//! Allocators of numbers, for memory slots and for GSIs.

use std::ops::Range;

use vm_allocator::IdAllocator;

/// An allocator of the numbers in a range. It is `None` if the range is empty.
pub(super) fn allocator(range: Range<u32>) -> Option<IdAllocator> {
    let last = range.end.checked_sub(1)?;
    IdAllocator::new(range.start, last).ok()
}

/// An allocator that counts the numbers in use.
pub(super) struct Counted {
    numbers: Option<IdAllocator>,
    used: u32,
}

impl Counted {
    /// The numbers in a range; none is in use.
    pub(super) fn new(range: Range<u32>) -> Self {
        Self { numbers: allocator(range), used: 0 }
    }

    /// Allocates a number; `None` if all are in use.
    pub(super) fn allocate(&mut self) -> Option<u32> {
        let number = self.numbers.as_mut()?.allocate_id().ok()?;
        self.used = self.used.saturating_add(1);
        Some(number)
    }

    /// Frees a number.
    pub(super) fn free(&mut self, number: u32) -> Result<(), vm_allocator::Error> {
        let Some(numbers) = &mut self.numbers else { return Ok(()) };
        numbers.free_id(number)?;
        self.used = self.used.saturating_sub(1);
        Ok(())
    }

    /// The number of numbers in use.
    pub(super) fn used(&self) -> u32 {
        self.used
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_the_numbers_in_use() {
        let mut numbers = Counted::new(3..5);
        assert_eq!(
            [numbers.allocate(), numbers.allocate(), numbers.allocate()],
            [Some(3), Some(4), None]
        );
        assert_eq!(numbers.used(), 2);
        numbers.free(3).unwrap();
        assert!(numbers.free(3).is_err());
        assert_eq!(numbers.used(), 1);
        assert_eq!(Counted::new(0..0).allocate(), None);
    }
}
