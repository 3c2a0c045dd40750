//! Pages that drivers in the kernel pin in type1 mappings (`vfio_iommu_type1_pin_pages`).

use std::io;
use std::ops::Range;

use crate::errno::errno;
use crate::type1::{Mapping, Type1};

const SHIFT: u32 = 12;

impl Type1 {
    /// The mapping of a page, and the page's number in the process's memory.
    fn page(&self, page: u64) -> Option<(Mapping, u64)> {
        let iova = page.checked_shl(SHIFT)?;
        let (start, mapping) = self.first_in(iova, 1)?;
        let at = mapping.vaddr.wrapping_add(iova.wrapping_sub(start));
        Some((mapping, at >> SHIFT))
    }

    /// Pins all pages or none, and returns their numbers in the process's memory.
    pub fn pin(&mut self, pages: &[u64], access: u32, notifies: bool) -> io::Result<Vec<u64>> {
        if !self.v2 {
            return Err(errno(libc::EACCES));
        }
        if !notifies {
            return Err(errno(libc::EINVAL));
        }
        let place = |page: &u64| match self.page(*page) {
            None => Err(errno(libc::EINVAL)),
            Some((mapping, _)) if mapping.flags & access != access => Err(errno(libc::EPERM)),
            Some((_, at)) => Ok(at),
        };
        let places = pages.iter().map(place).collect::<io::Result<_>>()?;
        for page in pages {
            let count = self.pins.entry(*page).or_default();
            *count = count.saturating_add(1);
        }
        Ok(places)
    }

    /// Unpins pages up to the first that is not mapped, and returns their number.
    pub fn unpin(&mut self, pages: &[u64]) -> io::Result<usize> {
        if !self.v2 {
            return Err(errno(libc::EACCES));
        }
        let mapped = pages.iter().take_while(|page| self.page(**page).is_some()).count();
        for page in pages.iter().take(mapped) {
            if let Some(count) = self.pins.get_mut(page) {
                *count = count.saturating_sub(1);
            }
        }
        self.pins.retain(|_, count| *count > 0);
        match mapped {
            0 => Err(errno(libc::EINVAL)),
            _ => Ok(mapped),
        }
    }

    /// Whether a mapping has pinned pages.
    pub fn is_pinned(&self, range: &Range<u64>) -> bool {
        self.pins.range(range.start >> SHIFT..range.end >> SHIFT).next().is_some()
    }

    /// Drivers unpin their pages in a mapping.
    pub fn unpin_all(&mut self, range: &Range<u64>) {
        self.pins.retain(|page, _| !range.contains(&(page << SHIFT)));
    }
}
