//! The memory of a mapping comes back when the kernel has ended it, and then the mapping is no more.

use vfio_passthrough::dma::Mapping;

fn end(mapping: Mapping) {
    let _memory = mapping.unmap();
    let _again = mapping.unmap();
}

fn main() {}
