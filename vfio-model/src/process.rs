//! The memory of the process, and the accounts of what it has locked.

use std::io;
use std::ops::Range;

use crate::describe::Description;
use crate::errno::errno;

/// The page size of the CPU.
pub(crate) const PAGE: u64 = 4096;

/// Who pays for locked memory. `RLIMIT_MEMLOCK` limits each account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Account {
    /// The process, as with type1 (`locked_vm` of `struct mm_struct`).
    Process,
    /// The user, as iommufd does unless an option changes it (`locked_vm` of
    /// `struct user_struct`).
    #[default]
    User,
}

/// The memory of the process, and how much of it mappings have locked.
#[derive(Debug)]
pub(crate) struct Process {
    memory: Vec<(Range<u64>, bool)>,
    /// Where the process has the memory of devices mapped (`VM_PFNMAP`).
    devices: Vec<Range<u64>>,
    limit: Option<u64>,
    locked: u64,
    /// The memory that the account of the user has locked.
    locked_by_user: u64,
}

impl Process {
    pub fn new(description: &Description) -> Self {
        Self {
            memory: description.memory.clone(),
            devices: Vec::new(),
            limit: description.locked_memory.map(|bytes| bytes & !(PAGE - 1)),
            locked: 0,
            locked_by_user: 0,
        }
    }

    /// The bytes that mappings have locked. Memory that is mapped twice counts twice.
    pub fn locked(&self) -> u64 {
        self.locked.saturating_add(self.locked_by_user)
    }

    /// The process maps a device's memory at these addresses.
    pub fn map_device(&mut self, range: Range<u64>) {
        self.unmap(&range);
        self.devices.push(range);
    }

    /// The process unmaps addresses, or maps something else there.
    pub fn unmap(&mut self, gone: &Range<u64>) {
        let left = |range: &Range<u64>| {
            [range.start..range.end.min(gone.start), range.start.max(gone.end)..range.end]
        };
        self.devices = self.devices.iter().flat_map(left).filter(|left| !left.is_empty()).collect();
    }

    /// How many of the `size` bytes from `vaddr` on are a device's memory.
    fn of_devices(&self, vaddr: u64, size: u64) -> u64 {
        let end = vaddr.saturating_add(size);
        let common = |range: &Range<u64>| range.end.min(end).saturating_sub(range.start.max(vaddr));
        self.devices.iter().map(common).fold(0, u64::saturating_add)
    }

    /// Pins page after page (`vfio_pin_map_dma`): the bytes that were locked, to which a device's
    /// memory does not count. The first page that fails decides the error, and no page stays
    /// pinned.
    pub fn pin(&mut self, vaddr: u64, size: u64, write: bool) -> io::Result<u64> {
        let present = self.accessible(vaddr, size, write);
        let locked = present.saturating_sub(self.of_devices(vaddr, present));
        let allowed = self.limit.map_or(u64::MAX, |limit| limit.saturating_sub(self.locked));
        if allowed < locked {
            return Err(errno(libc::ENOMEM));
        }
        if present < size {
            return Err(errno(libc::EFAULT));
        }
        self.locked = self.locked.saturating_add(locked);
        Ok(locked)
    }

    /// How many of the `size` bytes from `vaddr` on can be pinned.
    fn accessible(&self, vaddr: u64, size: u64, write: bool) -> u64 {
        let end = vaddr.saturating_add(size);
        let mut at = vaddr;
        while let Some((range, _)) = self
            .memory
            .iter()
            .find(|(range, writable)| range.contains(&at) && (*writable || !write))
        {
            at = range.end.min(end);
            if at == end {
                break;
            }
        }
        at.saturating_sub(vaddr)
    }

    pub fn unpin(&mut self, size: u64) {
        self.locked = self.locked.saturating_sub(size);
    }

    /// Checks that memory can be pinned. iommufd pins all pages before it counts them, so that
    /// memory that is not there is reported first (`iopt_area_fill_domains`). It cannot pin a
    /// device's memory (`pin_user_pages`).
    pub fn check(&self, vaddr: u64, size: u64, write: bool) -> io::Result<()> {
        let is_there = self.accessible(vaddr, size, write) == size;
        match is_there && self.of_devices(vaddr, size) == 0 {
            true => Ok(()),
            false => Err(errno(libc::EFAULT)),
        }
    }

    /// Counts memory that iommufd has pinned.
    pub fn lock_for(&mut self, account: Account, size: u64) -> io::Result<()> {
        let locked = self.account(account).saturating_add(size);
        if self.limit.is_some_and(|limit| locked > limit) {
            return Err(errno(libc::ENOMEM));
        }
        *self.account(account) = locked;
        Ok(())
    }

    pub fn unpin_for(&mut self, account: Account, size: u64) {
        let locked = self.account(account);
        *locked = locked.saturating_sub(size);
    }

    fn account(&mut self, account: Account) -> &mut u64 {
        match account {
            Account::Process => &mut self.locked,
            Account::User => &mut self.locked_by_user,
        }
    }
}
