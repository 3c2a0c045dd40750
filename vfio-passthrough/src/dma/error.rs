//! What went wrong with a mapping.

use std::io;

use crate::address::{ByteRange, Iova};

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
    /// The kernel refused to end a mapping; its memory is kept until it does, or leaked.
    #[error("cannot unmap {range} from DMA: {source}; its memory is kept")]
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
    #[error("the IOMMU cannot map {range}: its IOVA ranges are {}", list(iova_ranges))]
    OutOfReach {
        /// Where the devices would see it.
        range: ByteRange,
        /// Where the IOMMU can map.
        iova_ranges: Vec<ByteRange>,
    },
    /// The container does not take so many mappings.
    #[error(
        "{needed} mappings for DMA are needed, and the container takes {available} more; raise its limit before the guest starts: \
         'echo N > /sys/module/vfio_iommu_type1/parameters/dma_entry_limit' as root"
    )]
    Full {
        /// How many there are to be.
        needed: usize,
        /// How many there can be.
        available: usize,
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

pub(super) fn total(needed: u64, used: u64) -> u64 {
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
    ranges.iter().map(ByteRange::to_string).collect::<Vec<_>>().join(", ")
}
