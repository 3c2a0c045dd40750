//! `HostMemory` cannot be implemented without `unsafe`: a vector, for example, moves when it grows.

use vfio_passthrough::host::HostMemory;

struct Growing(Vec<u8>);

impl HostMemory for Growing {
    fn host_address(&self) -> *mut u8 {
        self.0.as_ptr().cast_mut()
    }

    fn size(&self) -> u64 {
        self.0.len() as u64
    }
}

fn main() {}
