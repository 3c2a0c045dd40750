//! Memory slots of KVM.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;

use super::errno::errno;
use super::numbers::Counted;
use crate::counters::KvmCalls;
use crate::host::{HostMemory, MemorySlot, MemorySlots};

/// Puts memory into the guest by `KVM_SET_USER_MEMORY_REGION` (Documentation/virt/kvm/api.rst,
/// 4.35).
pub struct KvmMemory {
    vm: Arc<VmFd>,
    slots: Range<u32>,
    numbers: Mutex<Counted>,
    calls: Arc<KvmCalls>,
}

impl fmt::Debug for KvmMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvmMemory").field("slots", &self.slots).finish_non_exhaustive()
    }
}

impl KvmMemory {
    /// Makes an allocator of the slots in `numbers`. No other code uses these slots. Calls are
    /// counted in `calls`.
    pub fn new(vm: Arc<VmFd>, numbers: Range<u32>, calls: Arc<KvmCalls>) -> Self {
        let slots = numbers.clone();
        Self { vm, slots, numbers: Mutex::new(Counted::new(numbers)), calls }
    }

    /// Places `memory` at the page-aligned guest physical address `gpa`, until the value is
    /// dropped.
    ///
    /// # Errors
    ///
    /// `ENOSPC` if no slot is free; else the errno of `KVM_SET_USER_MEMORY_REGION`: `EEXIST` if the
    /// range overlaps another slot, `EINVAL` if the address is not page-aligned or is outside of
    /// the guest's address space.
    pub fn place(
        self: &Arc<Self>,
        gpa: u64,
        memory: Arc<dyn HostMemory>,
    ) -> io::Result<MemorySlot> {
        MemorySlot::new(self.clone(), gpa, memory)
    }

    /// The number of slots in use.
    pub fn in_use(&self) -> u32 {
        lock(&self.numbers).used()
    }

    /// # Safety
    ///
    /// The contract of [`MemorySlots::map`], unless the region's size is 0.
    unsafe fn set(&self, region: kvm_userspace_memory_region) -> io::Result<()> {
        self.calls.set_user_memory_region.increment();
        // SAFETY: the memory stays mapped, and may be written at any time, until the slot is
        // deleted.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(errno)
    }

    fn free(&self, number: u32) {
        if let Err(error) = lock(&self.numbers).free(number) {
            log::error!("memory slot {number}: {error}");
        }
    }
}

impl MemorySlots for KvmMemory {
    unsafe fn map(&self, gpa: u64, memory: &dyn HostMemory) -> io::Result<u32> {
        let number = lock(&self.numbers).allocate();
        let number = number.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSPC))?;
        let region = kvm_userspace_memory_region {
            slot: number,
            guest_phys_addr: gpa,
            memory_size: memory.size(),
            userspace_addr: memory.host_address().expose_provenance() as u64,
            ..Default::default()
        };
        // SAFETY: the caller keeps the memory until `unmap` has succeeded.
        let set = unsafe { self.set(region) };
        set.inspect_err(|_| self.free(number)).map(|()| number)
    }

    fn unmap(&self, number: u32, _: u64, _: &dyn HostMemory) -> io::Result<()> {
        // A size of zero deletes the slot (Documentation/virt/kvm/api.rst, 4.35).
        let region = kvm_userspace_memory_region { slot: number, ..Default::default() };
        // SAFETY: a deleted slot refers to no memory.
        unsafe { self.set(region) }?;
        self.free(number);
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
