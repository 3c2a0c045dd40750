//! Guest memory for devices: mappings of an I/O address space that hold the memory they expose.
//!
//! A [`Mapping`] keeps its memory alive, and gives it back only after the kernel confirmed that no device
//! reaches it any more. Where the kernel refuses to unmap, the memory is leaked: DMA to freed memory cannot
//! be written in safe code.

use std::fs;
use std::io;
use std::sync::Arc;

use crate::address::{ByteRange, Iova};
use crate::backend::{AddressSpace, Mapped};
use crate::host::HostMemory;

/// What went wrong with a mapping.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a mapping. What was mapped for the same call before is unmapped again.
    #[error("cannot map {range} for DMA: {source}{}", map_hint(source))]
    Map {
        /// Where the devices would have seen it.
        range: ByteRange,
        /// `EEXIST`: overlaps a mapping; `EINVAL`: alignment, or out of the IOMMU's reach; `ENOMEM`:
        /// RLIMIT_MEMLOCK; `ENOSPC`: too many.
        source: io::Error,
    },
    /// The kernel refused to end a mapping; its memory is leaked.
    #[error("cannot unmap {range} from DMA: {source}; its memory is kept for as long as this process lives")]
    Unmap {
        /// Where the devices see it.
        range: ByteRange,
        /// Why.
        source: io::Error,
    },
    /// A range that does not fit 64 bits.
    #[error("{size:#x} bytes at IOVA {iova} do not fit the address space")]
    Range {
        /// The start.
        iova: Iova,
        /// The size in bytes.
        size: u64,
    },
    /// The IOMMU's description could not be read.
    #[error("VFIO_IOMMU_GET_INFO: {0}")]
    Info(#[source] io::Error),
    /// The IOMMU cannot reach a range.
    #[error("the IOMMU cannot map {range}: it reaches {}", list(reach))]
    OutOfReach {
        /// Where the devices would see it.
        range: ByteRange,
        /// Where the IOMMU can map.
        reach: Vec<ByteRange>,
    },
    /// The process may not lock so much memory.
    #[error(
        "devices need all guest memory locked: {needed} KiB, but the limit of this process is {limit} KiB (RLIMIT_MEMLOCK) with {used} KiB in \
         use; raise it to {} KiB: 'ulimit -l {}', 'LimitMEMLOCK={}K' in a systemd unit, or 'memlock {}' in \
         /etc/security/limits.conf", total(*needed, *used), total(*needed, *used), total(*needed, *used), total(*needed, *used)
    )]
    LockedMemory {
        /// What is to be locked, in KiB.
        needed: u64,
        /// The limit, in KiB.
        limit: u64,
        /// What is locked already, in KiB.
        used: u64,
    },
}

fn total(needed: u64, used: u64) -> u64 {
    needed.saturating_add(used)
}

fn map_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOMEM) => {
            "; the limit on locked memory is too low ('ulimit -l'), or the host is out of memory"
        }
        Some(libc::EEXIST) => "; the range overlaps a mapping",
        Some(libc::ENOSPC) => {
            "; the container is full: vfio_iommu_type1 has the parameter dma_entry_limit (65535)"
        }
        _ => "",
    }
}

fn list(ranges: &[ByteRange]) -> String {
    ranges
        .iter()
        .map(ByteRange::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

/// The I/O address space of a guest's devices. Cloning gives another handle of the same one.
#[derive(Clone)]
pub struct DmaSpace {
    space: Arc<dyn AddressSpace>,
}

impl DmaSpace {
    /// The mappings of this address space.
    pub fn new(space: Arc<dyn AddressSpace>) -> Self {
        Self { space }
    }

    /// Where mappings can be: all of 64 bits where the kernel does not say. Ask after every group was
    /// attached.
    pub fn reach(&self) -> Result<Vec<ByteRange>, Error> {
        let info = self.space.info().map_err(Error::Info)?;
        Ok(info
            .iova_ranges
            .unwrap_or_else(|| vec![ByteRange::between(0, u64::MAX)]))
    }

    /// Lets the devices see `memory` at `iova`.
    ///
    /// # Errors
    ///
    /// [`Error::Map`] with the kernel's errno, [`Error::Range`].
    pub fn map(&self, iova: Iova, memory: Arc<dyn HostMemory>) -> Result<Mapping, Error> {
        let size = memory.size();
        let range = ByteRange::new(iova.0, size).ok_or(Error::Range { iova, size })?;
        let mapped =
            Mapped::new(self.space.clone(), range, memory).map_err(|source| Error::Map { range, source })?;
        Ok(Mapping { mapped })
    }

    /// Maps all or nothing: after a failure, what was mapped before it is unmapped again.
    ///
    /// # Errors
    ///
    /// As for [`map`](Self::map), and [`Error::OutOfReach`] before anything is mapped.
    pub fn map_all(
        &self,
        memory: impl IntoIterator<Item = (Iova, Arc<dyn HostMemory>)>,
    ) -> Result<Vec<Mapping>, Error> {
        let memory: Vec<_> = memory.into_iter().collect();
        let reach = self.reach()?;
        for (iova, memory) in &memory {
            let (iova, size) = (*iova, memory.size());
            let range = ByteRange::new(iova.0, size).ok_or(Error::Range { iova, size })?;
            if !reach.iter().any(|reach| reach.contains(range)) {
                return Err(Error::OutOfReach { range, reach });
            }
        }
        // Collecting stops at the first error, and drops, that is unmaps, what it had.
        memory
            .into_iter()
            .map(|(iova, memory)| self.map(iova, memory))
            .collect()
    }
}

/// Memory that devices reach. It holds the memory; dropping it ends the mapping.
#[must_use = "dropping a mapping ends it"]
pub struct Mapping {
    mapped: Mapped,
}

impl Mapping {
    /// Where the devices see it.
    pub fn range(&self) -> ByteRange {
        self.mapped.range()
    }

    /// Ends the mapping and gives the memory back.
    ///
    /// # Errors
    ///
    /// [`Error::Unmap`]: devices may still reach the memory, so it is leaked.
    pub fn unmap(self) -> Result<Arc<dyn HostMemory>, Error> {
        let range = self.range();
        self.mapped
            .unmap()
            .map_err(|source| Error::Unmap { range, source })
    }
}

/// Checks that this process may lock `bytes` more, before the kernel pins the first page of them.
///
/// # Errors
///
/// [`Error::LockedMemory`] where it may not. Where `/proc` does not tell, the kernel has the last word when
/// it maps.
pub fn check_locked_memory(bytes: u64) -> Result<(), Error> {
    let read = |name: &str| fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
    locked_memory_fits(bytes, &read("status"), &read("limits"))
}

/// `CAP_IPC_LOCK` (linux/capability.h): the kernel does not hold its owner to the limit.
const CAP_IPC_LOCK: u32 = 14;

fn locked_memory_fits(bytes: u64, status: &str, limits: &str) -> Result<(), Error> {
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    let capabilities = field("CapEff:")
        .and_then(|text| u64::from_str_radix(text, 16).ok())
        .unwrap_or(0);
    if capabilities >> CAP_IPC_LOCK & 1 == 1 {
        return Ok(());
    }
    let limit = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max locked memory"));
    // "unlimited" is no number, and a limit that cannot be read is left to the kernel.
    let limit = limit.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    let used = field("VmLck:")
        .and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok())
        .unwrap_or(0);
    let needed = bytes.div_ceil(1024);
    match limit.map(|bytes| bytes / 1024) {
        Some(limit) if total(needed, used) > limit => Err(Error::LockedMemory { needed, limit, used }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tvmm\nVmLck:\t    1024 kB\nCapEff:\t0000000000000000\n";
    const LIMITS: &str = "Limit                     Soft Limit           Hard Limit           Units     \n\
                          Max locked memory         8388608              8388608              bytes     \n";

    #[test]
    fn a_limit_that_is_too_low_is_told_with_the_value_that_is_needed() {
        let error = locked_memory_fits(512 << 20, STATUS, LIMITS)
            .unwrap_err()
            .to_string();
        for part in [
            "524288 KiB",
            "limit of this process is 8192 KiB",
            "1024 KiB in use",
            "'ulimit -l 525312'",
        ] {
            assert!(error.contains(part), "{part} is not in: {error}");
        }
    }

    #[test]
    fn what_fits_is_let_through() {
        let root = STATUS.replace("CapEff:\t0000000000000000", "CapEff:\t000001ffffffffff");
        let unlimited = LIMITS.replace("8388608 ", "unlimited");
        assert!(locked_memory_fits(7 << 20, STATUS, LIMITS).is_ok());
        assert!(locked_memory_fits((7 << 20) + 1, STATUS, LIMITS).is_err());
        assert!(locked_memory_fits(1 << 40, &root, LIMITS).is_ok());
        assert!(locked_memory_fits(1 << 40, STATUS, &unlimited).is_ok());
    }
}
