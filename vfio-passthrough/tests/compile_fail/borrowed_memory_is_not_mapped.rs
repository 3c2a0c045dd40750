//! Memory that is only lent may be freed while devices reach it: it is not taken.

use vfio_passthrough::{DmaSpace, Iova};
use vm_memory::GuestRegionMmap;

fn lend(space: &DmaSpace, memory: &GuestRegionMmap) {
    let _mapping = space.map(Iova(0), memory);
}

fn main() {}
