//! Calls linux-loader on guest RAM.
//!
//! linux-loader 0.13 is the last version that builds with Rust 1.85. It takes RAM of vm-memory
//! 0.17, and the other crates of rust-vmm take RAM of 0.18, so this module passes a view of the
//! mappings.

use std::fs::File;

use linux_loader::loader::{KernelLoader, KernelLoaderResult};
use linux_loader_memory as old;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

/// Loads the kernel in `file` to `gpa`, or to the address that its image specifies.
pub(in crate::guest) fn load<L: KernelLoader>(
    memory: &GuestMemoryMmap,
    gpa: Option<u64>,
    file: &mut &File,
) -> Result<KernelLoaderResult, String> {
    let view = |region: &GuestRegionMmap| {
        let (start, size) = (region.as_ptr(), region.size());
        let (prot, flags) = (region.prot(), region.flags());
        // SAFETY: `region` maps `size` bytes from `start` on. `memory` is borrowed until this
        // function returns, so the mapping outlives the view, which is dropped here. The view does
        // not own the mapping, so its drop unmaps nothing. Both versions use the bytes by raw
        // pointers only.
        let mapping = unsafe { old::MmapRegion::<()>::build_raw(start, size, prot, flags) };
        let mapping = mapping.map_err(|error| error.to_string())?;
        old::GuestRegionMmap::new(mapping, old::GuestAddress(region.start_addr().0))
            .ok_or_else(|| "guest RAM ends above all addresses".to_owned())
    };
    let regions = memory.iter().map(view).collect::<Result<Vec<_>, _>>()?;
    let view = old::GuestMemoryMmap::from_regions(regions).map_err(|error| error.to_string())?;
    L::load(&view, gpa.map(old::GuestAddress), file, None).map_err(|error| error.to_string())
}
