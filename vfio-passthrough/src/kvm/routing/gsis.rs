//! The GSIs that MSI routes may have.

use std::io;
use std::ops::Range;

use vm_allocator::IdAllocator;

use super::entries::{MAX_ENTRIES, PINS};
use crate::kvm::allocator;

pub(super) struct Gsis {
    numbers: Option<IdAllocator>,
    /// How many there are: no more than the routing table has room for beside the pins.
    size: u32,
    used: u32,
}

impl Gsis {
    pub(super) fn new(range: Range<u32>) -> Self {
        let size = range.end.saturating_sub(range.start);
        Self {
            numbers: allocator(range),
            size: size.min(MAX_ENTRIES.saturating_sub(PINS)),
            used: 0,
        }
    }

    /// So many GSIs, or none.
    pub(super) fn allocate(&mut self, count: usize) -> io::Result<Vec<u32>> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let free = self.size.saturating_sub(self.used);
        let numbers = self.numbers.as_mut().filter(|_| count <= free as usize);
        let Some(numbers) = numbers else {
            let (used, size) = (self.used, self.size);
            let message = format!(
                "{count} more GSIs are asked for: of the VM's {size}, {used} are used and {free} are free"
            );
            return Err(io::Error::new(io::ErrorKind::StorageFull, message));
        };
        let taken: Vec<u32> = (0..count).map_while(|_| numbers.allocate_id().ok()).collect();
        self.used = self.used.saturating_add(u32::try_from(taken.len()).unwrap_or(u32::MAX));
        Ok(taken)
    }

    #[cfg(test)]
    pub(super) fn are_free(&self) -> bool {
        self.used == 0
    }

    /// Takes one back.
    pub(super) fn free(&mut self, gsi: u32) {
        match self.numbers.as_mut().map(|numbers| numbers.free_id(gsi)) {
            Some(Err(error)) => log::error!("GSI {gsi}: {error}"),
            _ => self.used = self.used.saturating_sub(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gsis_are_given_out_all_or_none_and_come_back() {
        let mut gsis = Gsis::new(24..28);
        assert_eq!(gsis.allocate(3).unwrap(), [24, 25, 26]);
        assert!(gsis.allocate(0).unwrap().is_empty());
        let error = gsis.allocate(2).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        let text = "2 more GSIs are asked for: of the VM's 4, 3 are used and 1 are free";
        assert_eq!(error.to_string(), text);
        gsis.free(25);
        gsis.free(25);
        gsis.free(99);
        assert_eq!(
            gsis.allocate(3).unwrap_err().to_string(),
            text.replace("2 more", "3 more").replace("3 are used and 1", "2 are used and 2")
        );
        let mut rest = gsis.allocate(2).unwrap();
        rest.sort_unstable();
        assert_eq!(rest, [25, 27]);
        assert!(!gsis.are_free());
        (24..28).for_each(|gsi| gsis.free(gsi));
        assert!(gsis.are_free());
    }
}
