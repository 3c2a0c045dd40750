//! Memory slots of KVM.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_allocator::IdAllocator;

use super::{allocator, errno};
use crate::counters::KvmCalls;
use crate::host::{HostMemory, MemorySlot, MemorySlots};

/// Puts memory into the guest by `KVM_SET_USER_MEMORY_REGION` (Documentation/virt/kvm/api.rst, 4.35).
pub struct KvmMemory {
    vm: Arc<VmFd>,
    slots: Range<u32>,
    numbers: Arc<Mutex<Option<IdAllocator>>>,
    calls: Arc<KvmCalls>,
}

impl fmt::Debug for KvmMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvmMemory").field("slots", &self.slots).finish_non_exhaustive()
    }
}

impl KvmMemory {
    /// `numbers` are the slots that may be used here; nobody else uses them. Calls are counted in `calls`.
    pub fn new(vm: Arc<VmFd>, numbers: Range<u32>, calls: Arc<KvmCalls>) -> Self {
        let slots = numbers.clone();
        Self { vm, slots, numbers: Arc::new(Mutex::new(allocator(numbers))), calls }
    }
}

impl MemorySlots for KvmMemory {
    fn place(&self, gpa: u64, memory: Arc<dyn HostMemory>) -> io::Result<Box<dyn MemorySlot>> {
        let number = lock(&self.numbers).as_mut().and_then(|numbers| numbers.allocate_id().ok());
        let number = number.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSPC))?;
        let mut slot = Slot {
            vm: self.vm.clone(),
            numbers: self.numbers.clone(),
            calls: self.calls.clone(),
            region: kvm_userspace_memory_region {
                slot: number,
                guest_phys_addr: gpa,
                ..Default::default()
            },
            memory: None,
        };
        slot.fill(memory)?;
        Ok(Box::new(slot))
    }
}

/// A slot. Without memory it is only a number.
struct Slot {
    vm: Arc<VmFd>,
    numbers: Arc<Mutex<Option<IdAllocator>>>,
    calls: Arc<KvmCalls>,
    region: kvm_userspace_memory_region,
    memory: Option<Arc<dyn HostMemory>>,
}

impl Slot {
    fn fill(&mut self, memory: Arc<dyn HostMemory>) -> io::Result<()> {
        self.region.memory_size = memory.size();
        self.region.userspace_addr = memory.host_address().expose_provenance() as u64;
        self.set()?;
        self.memory = Some(memory);
        Ok(())
    }

    fn set(&self) -> io::Result<()> {
        self.calls.set_user_memory_region.increment();
        // SAFETY: the region is memory of a `HostMemory`, which stays and may be written at any time; `fill`
        // keeps it in `self`, and `remove` lets go of it only after the kernel has let go of the slot.
        unsafe { self.vm.set_user_memory_region(self.region) }.map_err(errno)
    }
}

impl MemorySlot for Slot {
    fn remove(&mut self) -> io::Result<()> {
        if self.memory.is_some() {
            // A size of zero deletes the slot (Documentation/virt/kvm/api.rst, 4.35).
            self.region.memory_size = 0;
            self.set()?;
            self.memory = None;
        }
        Ok(())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        match self.remove() {
            Ok(()) => free(&self.numbers, self.region.slot),
            Err(error) => {
                // The guest still reaches the memory: leaked, so that nothing else ever lives at that place,
                // and the number is not handed out again.
                log::error!(
                    "memory slot {} stays, and its memory is leaked: {error}",
                    self.region.slot
                );
                #[expect(clippy::mem_forget, reason = "a failed undo leaks, it never frees")]
                std::mem::forget(self.memory.take());
            }
        }
    }
}

fn free(numbers: &Mutex<Option<IdAllocator>>, number: u32) {
    let freed = lock(numbers).as_mut().map(|numbers| numbers.free_id(number));
    if let Some(Err(error)) = freed {
        log::error!("memory slot {number}: {error}");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
