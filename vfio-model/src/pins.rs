//! Pages of type1 mappings that drivers in the kernel have pinned (`vfio_iommu_type1_pin_pages`).

use std::io;
use std::ops::Range;

use crate::errno;
use crate::type1::{Mapping, Type1};

const SHIFT: u32 = 12;

impl Type1 {
    /// The mapping that has a page, and where the page is in the process's memory.
    fn page(&self, page: u64) -> Option<(Mapping, u64)> {
        let iova = page.checked_shl(SHIFT)?;
        let (start, mapping) = self.first_in(iova, 1)?;
        let at = mapping.vaddr.wrapping_add(iova.wrapping_sub(start));
        Some((mapping, at >> SHIFT))
    }

    /// Pins all of these pages or none: where each is. Version 1 cannot (EACCES). There must be a
    /// notifier of unmaps (EINVAL), and each page must be mapped (EINVAL) with this access (EPERM).
    pub fn pin(&mut self, pages: &[u64], access: u32, is_told: bool) -> io::Result<Vec<u64>> {
        if !self.is_v2() {
            return Err(errno(libc::EACCES));
        }
        if !is_told {
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

    /// Lets go of pages, up to the first that is not mapped: how many; EINVAL for none.
    pub fn unpin(&mut self, pages: &[u64]) -> io::Result<usize> {
        if !self.is_v2() {
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
    pub(crate) fn is_pinned(&self, range: &Range<u64>) -> bool {
        self.pages_of(range).next().is_some()
    }

    fn pages_of(&self, range: &Range<u64>) -> impl Iterator<Item = u64> {
        let pages = self.pins.range(range.start >> SHIFT..);
        pages.map(|(page, _)| *page).take_while(move |page| *page < range.end >> SHIFT)
    }

    /// Drivers unpin what they have in a mapping that goes.
    pub(crate) fn let_go(&mut self, range: &Range<u64>) {
        self.pins.retain(|page, _| !range.contains(&(page << SHIFT)));
    }
}
