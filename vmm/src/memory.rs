//! Guest RAM: memory of this process, or a file in memory; of pages as the kernel has them, or of huge ones.

mod backing;
mod hugepages;
mod populate;

use std::fs::File;
use std::io::Read;
use std::sync::Arc;

pub use populate::Populating;
use resources::AddressRange;
use vfio_passthrough::host::{HostMemory, MemorySlot, MemorySlots};
use vm_memory::{GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use crate::{Error, Memory, MemorySize};

/// All of the guest's RAM, outside any VM: it can be filled, mapped for DMA, and then placed.
pub struct Ram {
    memory: GuestMemoryMmap,
    regions: Vec<Arc<GuestRegionMmap>>,
}

impl Ram {
    /// Reserves `ranges` of guest physical memory as [`of`](Self::of) does, of plain memory.
    pub fn new(ranges: &[AddressRange]) -> Result<Self, Error> {
        Self::of(ranges, Memory::default())
    }

    /// Reserves `ranges` of guest physical memory; nothing is touched, so nothing is used yet, but for huge
    /// pages where `memory` asks for them. Of `memory`, the size is not looked at.
    pub fn of(ranges: &[AddressRange], memory: Memory) -> Result<Self, Error> {
        let regions = ranges.iter().map(|range| backing::map(range, memory));
        let regions = regions.collect::<Result<Vec<_>, _>>()?;
        let memory = GuestMemoryMmap::from_arc_regions(regions.clone())
            .map_err(|e| Error::Ram { size: 0, why: e.to_string() })?;
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

    /// Puts each region into the guest's memory.
    pub fn place(&self, slots: &dyn MemorySlots) -> Result<Vec<Box<dyn MemorySlot>>, Error> {
        let place = |region: &Arc<GuestRegionMmap>| {
            let memory = Arc::clone(region) as Arc<dyn HostMemory>;
            slots
                .place(region.start_addr().0, memory)
                .map_err(Error::system("KVM_SET_USER_MEMORY_REGION"))
        };
        self.regions.iter().map(place).collect()
    }
}

/// Refuses more RAM than the host has: it would be killed later, when the guest touches it.
pub fn check_host(asked: Memory) -> Result<(), Error> {
    if let Some(text) = hugepages::thp_is_off(&asked) {
        log::warn!("{text}");
    }
    check_total(asked.size)?;
    hugepages::check(&asked).map_err(|why| Error::HugePages { asked, why })
}

fn check_total(asked: MemorySize) -> Result<(), Error> {
    match meminfo().and_then(|meminfo| kib(&meminfo, "MemTotal:")) {
        Some(kib) if asked.bytes() >> 10 > kib => {
            Err(Error::MemoryLargerThanHost { asked, has: kib >> 10 })
        }
        _ => Ok(()),
    }
}

/// What to say where all of the guest's RAM is pinned at once and the host has not that much to spare. It may
/// make room yet, by swapping others out. Huge pages that are reserved are nobody else's.
pub fn shortage(asked: Memory) -> Option<String> {
    let own = asked.hugepages.is_none();
    own.then(|| told_shortage(asked.size, &meminfo()?)).flatten()
}

/// What the host says of its memory first: what there is, what is free, what is to spare. All of it would take as many
/// reads as a string needs to grow.
fn meminfo() -> Option<String> {
    let mut start = [0; 128];
    let length = File::open("/proc/meminfo").and_then(|mut file| file.read(&mut start)).ok()?;
    Some(String::from_utf8_lossy(start.get(..length)?).into_owned())
}

fn told_shortage(asked: MemorySize, meminfo: &str) -> Option<String> {
    let available = kib(meminfo, "MemAvailable:")?;
    (asked.bytes() >> 10 > available).then(|| {
        format!(
            "--memory {asked}: this host has {}M to spare, and devices need all of it at once; \
             the kernel may kill the VMM for it (dmesg tells): ask for less",
            available >> 10
        )
    })
}

fn kib(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    #[test]
    fn regions_are_where_the_plan_says() {
        let plan = [AddressRange::new(0, 64 << 20), AddressRange::new(4 << 30, 2 << 20)];
        let ram = Ram::new(&plan).unwrap();
        ram.memory().write_obj(7_u32, GuestAddress(4 << 30)).unwrap();
        assert_eq!(ram.memory().read_obj::<u32>(GuestAddress(4 << 30)).unwrap(), 7);
        assert!(ram.memory().write_obj(7_u32, GuestAddress(64 << 20)).is_err());
        assert_eq!(ram.regions().len(), 2);
    }

    #[test]
    fn the_hosts_memory_is_read_from_meminfo() {
        let meminfo = "MemTotal:       24576 kB\nMemFree: 1 kB\n";
        assert_eq!(kib(meminfo, "MemTotal:"), Some(24576));
        assert_eq!(kib("MemFree: 1 kB\n", "MemTotal:"), None);
    }

    #[test]
    fn more_than_is_to_spare_is_told() {
        let asked = "512M".parse().unwrap();
        let told = |available| told_shortage(asked, &format!("MemAvailable: {available} kB\n"));
        let text = told(300 << 10).unwrap();
        assert!(text.starts_with("--memory 512M: this host has 300M to spare"), "{text}");
        assert_eq!((told(512 << 10), told_shortage(asked, "")), (None, None));
    }

    #[test]
    fn ram_that_is_not_to_be_had_is_told_with_what_mends_it() {
        let text = Ram::new(&[AddressRange::new(0, 1 << 60)]).err().unwrap().to_string();
        assert!(
            text.starts_with("guest RAM of 1099511627776 MiB could not be mapped: ")
                && text.contains("--memory")
                && text.contains("ulimit -v unlimited"),
            "{text}"
        );
    }

    #[test]
    fn more_than_the_host_has_is_refused_by_name() {
        let text = check_host("1000T".parse().unwrap()).unwrap_err().to_string();
        assert!(text.starts_with("--memory 1048576000M: this host has "), "{text}");
    }
}
