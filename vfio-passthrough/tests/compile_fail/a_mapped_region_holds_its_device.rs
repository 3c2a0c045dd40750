//! A mapped region cannot be separated from the device that it holds.

use vfio_passthrough::backend::RegionMmap;

fn part(mmap: RegionMmap) -> *mut u8 {
    let RegionMmap { address, .. } = mmap;
    drop(mmap.device);
    address
}

fn twice(mmap: &RegionMmap) -> RegionMmap {
    mmap.clone()
}

fn main() {}
