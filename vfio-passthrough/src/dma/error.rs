//! Errors of DMA mappings.

use std::io;

use crate::address::{ByteRange, Iova};

/// An error of a DMA mapping.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a mapping. Earlier mappings of the same call are unmapped.
    #[error("cannot map {range} for DMA: {source}{}", map_hint(source))]
    Map {
        /// The I/O virtual addresses.
        range: ByteRange,
        /// The errno of `VFIO_IOMMU_MAP_DMA` or `IOMMU_IOAS_MAP`: `EEXIST` if the range overlaps a mapping, `EINVAL` if
        /// it is not page-aligned or is outside of the IOVA ranges, `ENOMEM` if it exceeds
        /// RLIMIT_MEMLOCK, `ENOSPC` if the container has too many mappings.
        source: io::Error,
    },
    /// The kernel refused to unmap. The memory is kept until a later call succeeds, or it is
    /// leaked.
    #[error("cannot unmap {range} from DMA: {source}; its memory is kept")]
    Unmap {
        /// The I/O virtual addresses.
        range: ByteRange,
        /// The errno of `VFIO_IOMMU_UNMAP_DMA`.
        source: io::Error,
    },
    /// The end of a range does not fit in 64 bits.
    #[error("{size:#x} bytes at IOVA {iova} do not fit the address space")]
    Range {
        /// The start.
        iova: Iova,
        /// The size in bytes.
        size: u64,
    },
    /// `VFIO_IOMMU_GET_INFO` failed, or `IOMMU_IOAS_IOVA_RANGES` with iommufd.
    #[error("cannot read what the IOMMU maps (VFIO_IOMMU_GET_INFO or IOMMU_IOAS_IOVA_RANGES): {0}")]
    Info(#[source] io::Error),
    /// A range is outside of the IOVA ranges.
    #[error("the IOMMU cannot map {range}: its IOVA ranges are {}", list(iova_ranges))]
    OutOfReach {
        /// The I/O virtual addresses.
        range: ByteRange,
        /// The ranges that the IOMMU can map.
        iova_ranges: Vec<ByteRange>,
    },
    /// The container does not accept so many mappings.
    #[error(
        "{needed} mappings for DMA are needed, and the container takes {available} more; raise \
         its limit before the guest starts: \
         'echo N > /sys/module/vfio_iommu_type1/parameters/dma_entry_limit' as root"
    )]
    Full {
        /// The number of mappings that the call needs.
        needed: usize,
        /// The number of mappings that the container still accepts.
        available: usize,
    },
    /// The limit on locked memory of this process is too low (RLIMIT_MEMLOCK).
    #[error(
        "devices need all guest memory locked: {needed} KiB, but the limit of this process is \
         {limit} KiB (RLIMIT_MEMLOCK) with {used} KiB in use; raise it to {sum} KiB: \
         'ulimit -l {sum}', 'LimitMEMLOCK={sum}K' in a systemd unit, or 'memlock {sum}' in \
         /etc/security/limits.conf", sum = total(*needed, *used)
    )]
    LockedMemory {
        /// The memory to be locked, in KiB.
        needed: u64,
        /// The limit, in KiB.
        limit: u64,
        /// The memory that is locked already, in KiB.
        used: u64,
    },
}

impl Error {
    pub(crate) fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Map { source, .. } | Self::Unmap { source, .. } | Self::Info(source) => {
                source.kind()
            }
            Self::Range { .. } | Self::OutOfReach { .. } => io::ErrorKind::InvalidInput,
            // The kernel reports these two as ENOSPC and ENOMEM.
            Self::Full { .. } => io::ErrorKind::StorageFull,
            Self::LockedMemory { .. } => io::ErrorKind::OutOfMemory,
        }
    }
}

/// Keeps the error, and the kind of its errno if it has one.
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::new(error.kind(), error)
    }
}

pub(super) fn total(needed: u64, used: u64) -> u64 {
    needed.saturating_add(used)
}

fn map_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOMEM) => {
            "; the limit on locked memory is too low ('ulimit -l'; iommufd counts what all \
             processes of the user have locked), or the host is out of memory"
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
