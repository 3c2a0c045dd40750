//! Guest RAM: anonymous memory of this process, in KVM's memory slots.

use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use nix::libc;
use nix::sys::mman::{MmapAdvise, madvise};
use resources::AddressRange;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use crate::stats::Calls;
use crate::{Error, MemorySize};

/// All of the guest's RAM, outside any VM: it can be filled, mapped for DMA, and then placed.
pub struct Ram {
    memory: GuestMemoryMmap,
    regions: Vec<Arc<GuestRegionMmap>>,
}

impl Ram {
    /// Reserves `ranges` of guest physical memory; nothing is touched, so nothing is used yet.
    pub fn new(ranges: &[AddressRange]) -> Result<Self, Error> {
        let regions = ranges.iter().map(map).collect::<Result<Vec<_>, _>>()?;
        let memory = GuestMemoryMmap::from_arc_regions(regions.clone()).map_err(|e| Error::Ram {
            size: 0,
            why: e.to_string(),
        })?;
        Ok(Self { memory, regions })
    }

    /// The memory, to be read and written.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// The regions, in ascending order.
    pub fn regions(&self) -> &[Arc<GuestRegionMmap>] {
        &self.regions
    }

    /// Puts each region in a memory slot of `vm`, the first in slot 0.
    pub fn place(&self, vm: &Arc<VmFd>, calls: &Calls) -> Result<Vec<RamSlot>, Error> {
        let numbered = (0..).zip(&self.regions);
        let slots = numbered
            .map(|(slot, region)| RamSlot::new(vm, slot, region))
            .collect();
        calls.add("KVM_SET_USER_MEMORY_REGION", self.regions.len() as u64);
        slots
    }
}

fn map(range: &AddressRange) -> Result<Arc<GuestRegionMmap>, Error> {
    let failed = |why: String| Error::Ram {
        size: range.size >> 20,
        why,
    };
    let size = usize::try_from(range.size).map_err(|e| failed(e.to_string()))?;
    let region = MmapRegionBuilder::new(size)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE)
        .build()
        .map_err(|e| failed(e.to_string()))?;
    prefer_huge_pages(&region);
    let region = GuestRegionMmap::new(region, GuestAddress(range.start));
    region
        .map(Arc::new)
        .ok_or_else(|| failed("it ends above 2^64".into()))
}

/// Huge pages make fewer page faults, fewer pins and a shorter walk for the guest. Advice only.
fn prefer_huge_pages(region: &vm_memory::MmapRegion) {
    if let Some(start) = std::ptr::NonNull::new(region.as_ptr().cast()) {
        // SAFETY: MADV_HUGEPAGE changes neither contents nor validity of the mapping, which is ours and
        // covers these bytes.
        let advised = unsafe { madvise(start, region.size(), MmapAdvise::MADV_HUGEPAGE) };
        advised.unwrap_or_else(|e| log::debug!("no huge pages for guest RAM: {e}"));
    }
}

/// A region of RAM in a memory slot; taken out when dropped.
pub struct RamSlot {
    vm: Arc<VmFd>,
    slot: u32,
    region: Arc<GuestRegionMmap>,
}

impl RamSlot {
    fn new(vm: &Arc<VmFd>, slot: u32, region: &Arc<GuestRegionMmap>) -> Result<Self, Error> {
        set_slot(vm, slot, region, region.len())?;
        Ok(Self {
            vm: Arc::clone(vm),
            slot,
            region: Arc::clone(region),
        })
    }
}

fn set_slot(vm: &VmFd, slot: u32, region: &GuestRegionMmap, size: u64) -> Result<(), Error> {
    let memory = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: region.start_addr().0,
        memory_size: size,
        userspace_addr: region.as_ptr() as u64,
    };
    // SAFETY: the region is mapped at that address for at least `size` bytes; whoever keeps the slot
    // (RamSlot) keeps the region, and the guest's accesses are what volatile memory expects.
    let set = unsafe { vm.set_user_memory_region(memory) };
    set.map_err(Error::kvm("KVM_SET_USER_MEMORY_REGION"))
}

impl Drop for RamSlot {
    fn drop(&mut self) {
        if let Err(error) = set_slot(&self.vm, self.slot, &self.region, 0) {
            log::error!("memory slot {} stays, and so does its memory: {error}", self.slot);
            // The guest may still reach it: leaking is the only safe thing left.
            let _leaked = Arc::into_raw(Arc::clone(&self.region));
        }
    }
}

/// Refuses more RAM than the host has: it would be killed later, when the guest touches it.
pub fn check_host(asked: MemorySize) -> Result<(), Error> {
    let Ok(meminfo) = std::fs::read_to_string("/proc/meminfo") else {
        return Ok(());
    };
    match total_kib(&meminfo) {
        Some(kib) if asked.bytes() >> 10 > kib => Err(Error::MemoryLargerThanHost {
            asked,
            has: kib >> 10,
        }),
        _ => Ok(()),
    }
}

fn total_kib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn regions_are_where_the_plan_says() {
        let plan = [
            AddressRange::new(0, 64 << 20),
            AddressRange::new(4 << 30, 2 << 20),
        ];
        let ram = Ram::new(&plan).unwrap();
        ram.memory().write_obj(7_u32, GuestAddress(4 << 30)).unwrap();
        assert_eq!(ram.memory().read_obj::<u32>(GuestAddress(4 << 30)).unwrap(), 7);
        assert!(ram.memory().write_obj(7_u32, GuestAddress(64 << 20)).is_err());
        assert_eq!(ram.regions().len(), 2);
    }

    #[test]
    fn the_hosts_memory_is_read_from_meminfo() {
        assert_eq!(
            total_kib("MemTotal:       24576 kB\nMemFree: 1 kB\n"),
            Some(24576)
        );
        assert_eq!(total_kib("MemFree: 1 kB\n"), None);
    }

    #[test]
    fn more_than_the_host_has_is_refused_by_name() {
        let text = check_host("1000T".parse().unwrap()).unwrap_err().to_string();
        assert!(text.starts_with("--memory 1048576000M: this host has "), "{text}");
    }
}
