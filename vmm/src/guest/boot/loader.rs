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
pub(super) fn load<L: KernelLoader>(
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

#[cfg(test)]
mod tests {
    use std::io::Write;

    use linux_loader::loader::BzImage;
    use resources::AddressRange;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::guest::memory::Ram;

    const GPA: u64 = 4 << 30;

    /// A minimal bzImage: five sectors of setup code, and the kernel.
    fn bzimage(kernel: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 5 * 512];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[0x211] = 1;
        image.extend(kernel);
        image
    }

    #[test]
    fn loads_a_kernel_into_the_guests_ram_and_leaves_it_mapped() {
        let plan = [AddressRange::new(0, 2 << 20), AddressRange::new(GPA, 2 << 20)];
        let ram = Ram::new(&plan).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bzimage(b"kernel")).unwrap();
        let loaded = load::<BzImage>(ram.memory(), Some(GPA), &mut &file).unwrap();
        assert_eq!((loaded.kernel_load.0, loaded.kernel_end), (GPA, GPA + 6));
        let mut kernel = [0; 6];
        ram.memory().read_slice(&mut kernel, GuestAddress(GPA)).unwrap();
        assert_eq!(&kernel, b"kernel");
        ram.memory().write_obj(7_u32, GuestAddress(0)).unwrap();
    }
}
