//! The IOVA that the kernel chooses for a map without a fixed one (`iopt_alloc_iova`).

use std::io;

use crate::errno::errno;
use crate::ioas::Ioas;
use crate::process::PAGE;
use crate::spans::{self, Span};

/// The size of a huge page of the CPU: the largest alignment that is chosen.
const HUGE_PAGE: u64 = 2 << 20;

/// What a chosen IOVA has to fit.
struct Wish {
    length: u64,
    alignment: u64,
    /// The offset in its page, which IOVA and memory share.
    offset: u64,
}

impl Wish {
    /// The first address of a range that fits (`__alloc_iova_check_range`).
    fn place_in(&self, range: Span) -> Option<u64> {
        let mask = self.alignment.saturating_sub(1);
        let at = range.first.checked_add(mask)? & !mask | self.offset;
        let room = range.last.checked_sub(at)?;
        (at < range.last && room >= self.length.saturating_sub(1)).then_some(at)
    }
}

impl Ioas {
    /// The first free IOVA with the alignment of the memory, but never 0.
    ///
    /// # Errors
    ///
    /// - `EOVERFLOW`: half of all addresses would not be enough.
    /// - `EINVAL`: the memory is aligned less than the page table needs.
    /// - `ENOSPC`: no free range is large enough.
    pub fn allocate(&self, user_va: u64, length: u64) -> io::Result<u64> {
        if length >= u64::MAX / 2 {
            return Err(errno(libc::EOVERFLOW));
        }
        let power = length.next_power_of_two();
        let natural = match user_va {
            0 => power,
            _ => power.min(user_va & user_va.wrapping_neg()),
        };
        let alignment = natural.min(HUGE_PAGE);
        if alignment < self.alignment {
            return Err(errno(libc::EINVAL));
        }
        let wish = Wish { length, alignment, offset: user_va % PAGE };
        let mut allowed = self.allowed_spans().into_iter();
        allowed.find_map(|span| self.allocate_in(span, &wish)).ok_or_else(|| errno(libc::ENOSPC))
    }

    /// What the program allowed; otherwise all but the first and the last page.
    fn allowed_spans(&self) -> Vec<Span> {
        let usable = Span { first: PAGE, last: u64::MAX.saturating_sub(PAGE) };
        match self.allowed.is_empty() {
            true => vec![usable],
            false => {
                let outside = spans::holes(usable, self.allowed.iter().copied());
                spans::holes(usable, outside)
            }
        }
    }

    fn allocate_in(&self, allowed: Span, wish: &Wish) -> Option<u64> {
        let first = wish.place_in(allowed)?;
        let used = self.reserved.iter().map(|(_, span)| *span);
        let areas = self.areas.values().map(|area| area.span);
        let holes = spans::holes(Span { first, ..allowed }, used.chain(areas));
        holes.into_iter().find_map(|hole| wish.place_in(hole))
    }
}
