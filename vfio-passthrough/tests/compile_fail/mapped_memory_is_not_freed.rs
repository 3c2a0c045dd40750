//! The owner of memory cannot free it after it has been mapped for devices.

use std::sync::Arc;
use vfio_passthrough::{DmaSpace, Iova};
use vm_memory::GuestRegionMmap;

fn free(space: &DmaSpace, memory: GuestRegionMmap) {
    let _mapping = space.map(Iova(0), Arc::new(memory));
    drop(memory);
}

fn main() {}
