//! Borrowed memory cannot be mapped: its owner could free it while devices access it.

use vfio_passthrough::{DmaSpace, Iova};
use vm_memory::GuestRegionMmap;

fn lend(space: &DmaSpace, memory: &GuestRegionMmap) {
    let _mapping = space.map(Iova(0), memory);
}

fn main() {}
