//! Mapped memory cannot be moved out of its `Arc`.

use std::sync::Arc;

use vfio_passthrough::{DmaSpace, Iova};
use vm_memory::GuestRegionMmap;

fn take(space: &DmaSpace, memory: Arc<GuestRegionMmap>) -> GuestRegionMmap {
    let _mapping = space.map(Iova(0), memory.clone());
    *memory
}

fn main() {}
