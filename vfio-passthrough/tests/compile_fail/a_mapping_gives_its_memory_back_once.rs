//! `Mapping::unmap` returns the memory and consumes the mapping, so it can be called only once.

use vfio_passthrough::dma::Mapping;

fn end(mapping: Mapping) {
    let _memory = mapping.unmap();
    let _again = mapping.unmap();
}

fn main() {}
