//! The allocator of GSIs for MSI routes.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::ops::Range;

use vm_allocator::IdAllocator;

use crate::kvm::numbers::allocator;

pub(super) struct Gsis {
    range: Range<u32>,
    numbers: Option<IdAllocator>,
    used: u32,
    /// The GSIs that the VMM allocated for its own use.
    own: BTreeSet<u32>,
}

impl fmt::Debug for Gsis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {:?} used", self.used, self.range)
    }
}

impl Gsis {
    pub(super) fn new(range: Range<u32>) -> Self {
        Self { numbers: allocator(range.clone()), range, used: 0, own: BTreeSet::new() }
    }

    /// The GSI is in this allocator's range.
    pub(super) fn is_given_out(&self, gsi: u32) -> bool {
        self.range.contains(&gsi)
    }

    /// The VMM may set routes of this GSI: it is out of the range, or the VMM has allocated it.
    pub(super) fn is_vmms(&self, gsi: u32) -> bool {
        !self.is_given_out(gsi) || self.own.contains(&gsi)
    }

    /// Allocates a GSI for the VMM. The table has room for `room` entries.
    pub(super) fn allocate_own(&mut self, room: usize) -> io::Result<u32> {
        let gsi = self.allocate(1, room)?.pop().ok_or(io::ErrorKind::StorageFull)?;
        self.own.insert(gsi);
        Ok(gsi)
    }

    /// Allocates `count` GSIs or none. `room` is the number of entries for GSIs in the range that
    /// the table can have.
    pub(super) fn allocate(&mut self, count: usize, room: usize) -> io::Result<Vec<u32>> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let room = u32::try_from(room).unwrap_or(u32::MAX);
        let size = self.range.end.saturating_sub(self.range.start).min(room);
        let free = size.saturating_sub(self.used);
        let numbers = self.numbers.as_mut().filter(|_| count <= free as usize);
        let Some(numbers) = numbers else {
            let used = self.used;
            let message = format!(
                "{count} more GSIs are asked for: of the VM's {size}, \
                 {used} are used and {free} are free"
            );
            return Err(io::Error::new(io::ErrorKind::StorageFull, message));
        };
        let taken: Vec<u32> = (0..count).map_while(|_| numbers.allocate_id().ok()).collect();
        self.used = self.used.saturating_add(u32::try_from(taken.len()).unwrap_or(u32::MAX));
        Ok(taken)
    }

    /// The number of GSIs in use.
    pub(super) fn used(&self) -> u32 {
        self.used
    }

    #[cfg(test)]
    pub(super) fn are_free(&self) -> bool {
        self.used == 0
    }

    /// Frees a GSI.
    pub(super) fn free(&mut self, gsi: u32) {
        self.own.remove(&gsi);
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
    fn allocates_all_gsis_or_none_and_reuses_freed_ones() {
        let mut gsis = Gsis::new(24..28);
        assert_eq!(gsis.allocate(3, 4096).unwrap(), [24, 25, 26]);
        assert!(gsis.allocate(0, 4096).unwrap().is_empty());
        let error = gsis.allocate(2, 4096).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        let text = "2 more GSIs are asked for: of the VM's 4, 3 are used and 1 are free";
        assert_eq!(error.to_string(), text);
        gsis.free(25);
        gsis.free(25);
        gsis.free(99);
        assert_eq!(
            gsis.allocate(3, 4096).unwrap_err().to_string(),
            text.replace("2 more", "3 more").replace("3 are used and 1", "2 are used and 2")
        );
        let mut rest = gsis.allocate(2, 4096).unwrap();
        rest.sort_unstable();
        assert_eq!(rest, [25, 27]);
        assert!(!gsis.are_free());
        (24..28).for_each(|gsi| gsis.free(gsi));
        assert!(gsis.are_free());
    }

    #[test]
    fn the_vmm_owns_its_gsis_and_those_out_of_the_range() {
        let mut gsis = Gsis::new(24..28);
        assert!(gsis.is_vmms(23) && gsis.is_vmms(28) && !gsis.is_vmms(24));
        assert_eq!(gsis.allocate_own(4096).unwrap(), 24);
        assert!(gsis.is_vmms(24));
        gsis.free(24);
        assert!(!gsis.is_vmms(24) && gsis.are_free());
    }

    #[test]
    fn allocates_no_more_gsis_than_the_table_has_room_for() {
        let mut gsis = Gsis::new(24..4096);
        let text = "4 more GSIs are asked for: of the VM's 3, 0 are used and 3 are free";
        assert_eq!(gsis.allocate(4, 3).unwrap_err().to_string(), text);
        assert_eq!(gsis.allocate(3, 3).unwrap().len(), 3);
    }
}
