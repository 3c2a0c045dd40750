//! I/O address spaces of iommufd: areas of the process's memory at IOVAs, and the page tables that
//! translate with them (drivers/iommu/iommufd/io_pagetable.c).
//!
//! The memory of the areas is pinned while a page table exists, which is while a device is
//! attached.

use std::collections::BTreeMap;
use std::io;

use crate::address::PciAddress;
use crate::backing::Backing;
use crate::describe::Description;
use crate::errno::errno;
use crate::process::{Account, PAGE, Process};
use crate::spans::{self, ALL, Span};

/// `struct iommu_ioas_map`, for [`System::ioas_map`](crate::System::ioas_map).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoasMap {
    /// [`IoasMap::FIXED_IOVA`], [`IoasMap::WRITEABLE`] and [`IoasMap::READABLE`].
    pub flags: u32,
    /// The number of the address space.
    pub ioas: u32,
    /// The address in the process's memory.
    pub user_va: u64,
    /// The size in bytes.
    pub length: u64,
    /// The address that the device uses. Without [`IoasMap::FIXED_IOVA`] the kernel chooses it.
    pub iova: u64,
}

impl IoasMap {
    /// `IOMMU_IOAS_MAP_FIXED_IOVA`.
    pub const FIXED_IOVA: u32 = 1;
    /// `IOMMU_IOAS_MAP_WRITEABLE`: the device may write.
    pub const WRITEABLE: u32 = 2;
    /// `IOMMU_IOAS_MAP_READABLE`: the device may read.
    pub const READABLE: u32 = 4;
}

/// `struct iommu_ioas_unmap`, for [`System::ioas_unmap`](crate::System::ioas_unmap).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoasUnmap {
    /// The number of the address space.
    pub ioas: u32,
    /// The address that the device uses.
    pub iova: u64,
    /// The size in bytes. With 2^64 - 1 at the address 0, all areas are unmapped.
    pub length: u64,
}

/// A map of memory, of any kind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Map {
    /// As in [`IoasMap`].
    pub flags: u32,
    pub memory: Backing,
    pub length: u64,
    pub iova: u64,
}

impl From<&IoasMap> for Map {
    fn from(call: &IoasMap) -> Self {
        let IoasMap { flags, user_va, length, iova, .. } = *call;
        Self { flags, memory: Backing::Address(user_va), length, iova }
    }
}

/// Memory at an IOVA (`struct iopt_area`).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Area {
    pub span: Span,
    pub memory: Backing,
    /// [`IoasMap::READABLE`] and [`IoasMap::WRITEABLE`].
    access: u32,
}

impl Area {
    fn is_aligned(self, alignment: u64) -> bool {
        let words = [self.span.first, self.span.length(), self.memory.start()];
        words.iter().all(|word| is_aligned(*word, alignment))
    }
}

/// Who reserves IOVAs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A device: its MSI window and other reserved regions.
    Device(PciAddress),
    /// A page table: what is outside of its aperture.
    PageTable(u32),
}

/// `struct iommufd_ioas`.
#[derive(Debug)]
pub(crate) struct Ioas {
    pub areas: BTreeMap<u64, Area>,
    pub reserved: Vec<(Owner, Span)>,
    pub allowed: Vec<Span>,
    /// The page tables and their smallest pages, in the order in which they were made.
    pub page_tables: Vec<(u32, u64)>,
    /// The option `IOMMU_OPTION_HUGE_PAGES` is 0.
    pub small_pages: bool,
    /// What IOVAs and lengths are multiples of: 1 without a page table.
    pub alignment: u64,
    account: Account,
}

/// A power of two divides the value.
fn is_aligned(value: u64, alignment: u64) -> bool {
    value & alignment.saturating_sub(1) == 0
}

impl Ioas {
    pub fn new(account: Account) -> Self {
        Self {
            areas: BTreeMap::new(),
            reserved: Vec::new(),
            allowed: Vec::new(),
            page_tables: Vec::new(),
            small_pages: false,
            alignment: 1,
            account,
        }
    }

    pub fn has_memory_of_process(&self) -> bool {
        self.areas.values().any(|area| matches!(area.memory, Backing::Address(_)))
    }

    /// The lowest area that overlaps a range.
    pub fn first_in(&self, span: Span) -> Option<Area> {
        let before = self.areas.range(..=span.first).next_back();
        let over = before.map(|(_, area)| *area).filter(|area| area.span.last >= span.first);
        let inside = || self.areas.range(span.first..=span.last).next().map(|(_, area)| *area);
        over.or_else(inside)
    }

    /// The IOVAs that nobody reserves.
    pub fn free(&self) -> Vec<Span> {
        spans::holes(ALL, self.reserved.iter().map(|(_, span)| *span))
    }

    fn is_reserved(&self, span: Span) -> bool {
        self.reserved.iter().any(|(_, reserved)| reserved.overlaps(span))
    }

    /// `iommufd_ioas_map`: the IOVA.
    pub fn map(&mut self, call: &Map, process: &mut Process) -> io::Result<u64> {
        if !is_aligned(call.length, self.alignment) {
            return Err(errno(libc::EINVAL));
        }
        let iova = match call.flags & IoasMap::FIXED_IOVA {
            0 => self.allocate(call.memory.start(), call.length)?,
            _ => self.check_iova(call)?,
        };
        if !is_aligned(call.memory.start() % PAGE, self.alignment) {
            return Err(errno(libc::EINVAL));
        }
        let span = Span::sized(iova, call.length)?;
        let access = call.flags & (IoasMap::READABLE | IoasMap::WRITEABLE);
        let area = Area { span, memory: call.memory, access };
        if !self.page_tables.is_empty() {
            self.pin(&area, process)?;
        }
        self.areas.insert(iova, area);
        Ok(iova)
    }

    /// Checks that the IOVAs of a map are free (`iopt_check_iova`).
    fn check_iova(&self, call: &Map) -> io::Result<u64> {
        if !is_aligned(call.iova, self.alignment) {
            return Err(errno(libc::EINVAL));
        }
        let span = Span::sized(call.iova, call.length)?;
        if self.is_reserved(span) {
            return Err(errno(libc::EINVAL));
        }
        match self.first_in(span) {
            Some(_) => Err(errno(libc::EEXIST)),
            None => Ok(call.iova),
        }
    }

    /// `iommufd_ioas_unmap`: the number of bytes that were unmapped.
    pub fn unmap(&mut self, iova: u64, length: u64, process: &mut Process) -> io::Result<u64> {
        if (iova, length) == (0, u64::MAX) {
            return self.unmap_span(ALL, process);
        }
        if iova == u64::MAX || length == u64::MAX {
            return Err(errno(libc::EOVERFLOW));
        }
        match self.unmap_range(iova, length, process)? {
            0 => Err(errno(libc::ENOENT)),
            unmapped => Ok(unmapped),
        }
    }

    /// `iopt_unmap_iova`: the number of bytes that were unmapped, which may be 0.
    pub fn unmap_range(
        &mut self,
        iova: u64,
        length: u64,
        process: &mut Process,
    ) -> io::Result<u64> {
        match length {
            0 => Err(errno(libc::EINVAL)),
            _ => self.unmap_span(Span::sized(iova, length)?, process),
        }
    }

    /// Divides the area at an IOVA, which is its last then (`iopt_area_split`).
    pub fn cut(&mut self, iova: u64) -> io::Result<()> {
        let Some(area) = self.first_in(Span { first: iova, last: iova }) else {
            return Ok(());
        };
        if iova == area.span.first || iova == area.span.last {
            return Ok(());
        }
        let first = iova.saturating_add(1);
        let memory = area.memory.behind(first.wrapping_sub(area.span.first));
        if !is_aligned(first, self.alignment) || !is_aligned(memory.start(), self.alignment) {
            return Err(errno(libc::EINVAL));
        }
        let before = Area { span: Span { last: iova, ..area.span }, ..area };
        let behind = Area { span: Span { first, ..area.span }, memory, ..area };
        self.areas.insert(area.span.first, before);
        self.areas.insert(first, behind);
        Ok(())
    }

    /// Unmaps one area after the other, up to the first that is not inside of the range
    /// (`iopt_unmap_iova_range`).
    fn unmap_span(&mut self, span: Span, process: &mut Process) -> io::Result<u64> {
        let mut unmapped = 0_u64;
        while let Some(area) = self.first_in(span) {
            if !span.contains(area.span) {
                return Err(errno(libc::ENOENT));
            }
            self.areas.remove(&area.span.first);
            if !self.page_tables.is_empty() {
                process.unpin_for(self.account, area.span.length());
            }
            unmapped = unmapped.saturating_add(area.span.length());
        }
        Ok(unmapped)
    }

    /// Unmaps all areas.
    pub fn clear(&mut self, process: &mut Process) {
        // No area is outside of all addresses.
        let _ = self.unmap_span(ALL, process);
    }

    /// Reserves ranges for an owner: all or none (`iopt_reserve_iova`).
    ///
    /// # Errors
    ///
    /// `EADDRINUSE`: a range has an area or is allowed.
    pub fn reserve(&mut self, owner: Owner, spans: &[Span]) -> io::Result<()> {
        for span in spans {
            let is_allowed = self.allowed.iter().any(|allowed| allowed.overlaps(*span));
            if is_allowed || self.first_in(*span).is_some() {
                self.release(owner);
                return Err(errno(libc::EADDRINUSE));
            }
            self.reserved.push((owner, *span));
        }
        Ok(())
    }

    /// Removes what an owner reserves.
    pub fn release(&mut self, owner: Owner) {
        self.reserved.retain(|(other, _)| *other != owner);
    }

    /// `iommufd_ioas_allow_iovas`.
    pub fn allow(&mut self, ranges: &[Span]) -> io::Result<()> {
        for (number, range) in ranges.iter().enumerate() {
            let mut before = ranges.iter().take(number);
            if range.first >= range.last || before.any(|other| other.overlaps(*range)) {
                return Err(errno(libc::EINVAL));
            }
        }
        if ranges.iter().any(|range| self.is_reserved(*range)) {
            return Err(errno(libc::EADDRINUSE));
        }
        self.allowed = ranges.to_vec();
        Ok(())
    }

    /// Adds a page table, which translates all areas (`iopt_table_add_domain`). The first pins
    /// their memory.
    pub fn add_page_table(
        &mut self,
        id: u32,
        description: &Description,
        process: &mut Process,
    ) -> io::Result<()> {
        let alignment = self.alignment.max(description.smallest_page());
        if alignment > PAGE {
            return Err(errno(libc::EINVAL));
        }
        self.check_alignment(alignment)?;
        let owner = Owner::PageTable(id);
        self.reserve(owner, &spans::holes(ALL, description.aperture()))?;
        let pinned = match self.page_tables.is_empty() {
            true => self.pin_all(process),
            false => Ok(()),
        };
        pinned.inspect_err(|_| self.release(owner))?;
        self.alignment = alignment;
        self.page_tables.push((id, description.smallest_page()));
        Ok(())
    }

    /// Removes a page table (`iopt_table_remove_domain`).
    pub fn remove_page_table(&mut self, id: u32, process: &mut Process) {
        let before = self.page_tables.len();
        self.page_tables.retain(|(other, _)| *other != id);
        if self.page_tables.is_empty() && before > 0 {
            self.areas.values().for_each(|area| {
                process.unpin_for(self.account, area.span.length());
            });
        }
        self.release(Owner::PageTable(id));
        self.alignment = self.smallest_alignment();
    }

    /// What the option and the page tables need (`iopt_calculate_iova_alignment`).
    fn smallest_alignment(&self) -> u64 {
        let small = if self.small_pages { PAGE } else { 1 };
        self.page_tables.iter().map(|(_, page)| *page).fold(small, u64::max)
    }

    /// Areas that an alignment does not allow are EADDRINUSE (`iopt_check_iova_alignment`).
    fn check_alignment(&self, alignment: u64) -> io::Result<()> {
        match self.areas.values().all(|area| area.is_aligned(alignment)) {
            true => Ok(()),
            false => Err(errno(libc::EADDRINUSE)),
        }
    }

    /// Pins the memory of an area. A page table has no entries without access: EINVAL, which only
    /// the calls of a container can ask for.
    fn pin(&self, area: &Area, process: &mut Process) -> io::Result<()> {
        let (length, write) = (area.span.length(), area.access & IoasMap::WRITEABLE != 0);
        area.memory.check_present(length, write, process)?;
        match area.access {
            0 => Err(errno(libc::EINVAL)),
            _ => process.lock_for(self.account, length),
        }
    }

    /// Pins the memory of all areas, or of none.
    fn pin_all(&self, process: &mut Process) -> io::Result<()> {
        for (number, area) in self.areas.values().enumerate() {
            if let Err(error) = self.pin(area, process) {
                let pinned = self.areas.values().take(number);
                pinned.for_each(|area| process.unpin_for(self.account, area.span.length()));
                return Err(error);
            }
        }
        Ok(())
    }

    /// `iopt_disable_large_pages`.
    pub fn use_small_pages(&mut self) -> io::Result<()> {
        if self.small_pages {
            return Ok(());
        }
        if !self.page_tables.is_empty() && !self.areas.is_empty() {
            return Err(errno(libc::EINVAL));
        }
        self.check_alignment(PAGE)?;
        self.small_pages = true;
        self.alignment = self.smallest_alignment();
        Ok(())
    }

    /// `iopt_enable_large_pages`.
    pub fn use_large_pages(&mut self) {
        self.small_pages = false;
        self.alignment = self.smallest_alignment();
    }
}
